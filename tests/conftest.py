"""What holds for all tests: how long a drawn example takes is the machine's affair, not the code's."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
