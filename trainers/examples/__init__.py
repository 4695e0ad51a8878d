"""Trainers that know nothing of us, for the sweep to run; and the file that a trainer may copy to tell how it is doing."""
