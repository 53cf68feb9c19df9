"""One file per schema change, `NNNN_purpose.py`; a released one is never edited."""
