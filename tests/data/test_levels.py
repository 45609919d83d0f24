import numpy as np

from prectr_torchrec.data.levels import grade_levels


def test_a_grade_on_a_boundary_belongs_to_the_lower_level() -> None:
    grades = np.array([1.0, 1.5, 1.51, 2.17, 2.33, 2.84, 3.0], dtype=np.float32)
    assert grade_levels(grades, [1.5, 2.17, 2.84]).tolist() == [1, 1, 2, 2, 3, 3, 4]


def test_no_grade_is_level_zero() -> None:
    assert grade_levels(np.array([np.nan, 3.0], dtype=np.float32), [1.5, 2.17, 2.84]).tolist() == [0, 4]
