import numpy as np

from prectr_torchrec.data.levels import grade_distributions, grade_levels


def test_a_grade_on_a_boundary_belongs_to_the_lower_level() -> None:
    grades = np.array([1.0, 1.5, 1.51, 2.17, 2.33, 2.84, 3.0], dtype=np.float32)
    assert grade_levels(grades, [1.5, 2.17, 2.84]).tolist() == [1, 1, 2, 2, 3, 3, 4]


def test_no_grade_is_level_zero() -> None:
    assert grade_levels(np.array([np.nan, 3.0], dtype=np.float32), [1.5, 2.17, 2.84]).tolist() == [0, 4]


def test_a_grade_lies_between_the_two_levels_next_to_it() -> None:
    level_grades = np.array([1.0, 2.0, 2.5, 3.0])
    grades = np.array([1.0, 1.25, 2.0, 2.4, 3.0], np.float32)
    distributions = grade_distributions(grades, level_grades)
    np.testing.assert_allclose(distributions @ level_grades, grades, atol=1e-6)
    np.testing.assert_allclose(distributions[1], [0.75, 0.25, 0, 0])
    assert ((distributions > 0).sum(axis=1) <= 2).all()


def test_a_grade_beyond_the_ends_is_the_level_there() -> None:
    distributions = grade_distributions(np.array([0.5, 9.0], np.float32), np.array([1.0, 2.0, 3.0]))
    assert distributions.tolist() == [[1, 0, 0], [0, 0, 1]]
