"""Whole models as files: exported by jobs, downloaded, uploaded, and read again. No torch here."""
