"""`errata doctor`: whether this machine and what it talks to can run tonight's night, and what to do where they cannot."""
