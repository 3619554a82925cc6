"""What all tests share."""

from hypothesis import settings

# A busy machine is slow, which is no fault of the code.
settings.register_profile("oncelake", deadline=None)
settings.load_profile("oncelake")
