"""What runs inside Triton: the source of each `1/model.py`."""
