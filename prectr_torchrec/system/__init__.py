"""Files, paths, locks and processes: what stands below everything else."""
