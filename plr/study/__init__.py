"""A study: axes in a YAML file, resolved to cells, planned, run and read back."""

from __future__ import annotations

from plr.study.cells import Cell, failed_cells, raise_if_all_failed
from plr.study.file import StudyConfig, load_study, study_config
from plr.study.study import Study

__all__ = ["Cell", "Study", "StudyConfig", "failed_cells", "load_study", "raise_if_all_failed", "study_config"]
