"""The one family of errors a person can cause and mend.

Every message is one line that gives the value, the rule, the remedy and, where there is one, the flag. The command
lines print the message alone and leave with status 2; anything else is a defect of the program and keeps its traceback.
"""


class UserError(Exception):
    """A wrong input; the message says how to put it right."""


class ConfigError(UserError):
    """A setting that does not exist, is out of range, or does not go with another one."""


class LabelError(UserError):
    """An unknown class, a malformed label row, an id that cannot become a file name."""


class ImageError(UserError):
    """An image or a mask that is missing, damaged, too large, or of the wrong size.

    Attributes:
        reason: why, in a few words, for a list that names the image itself; else the message.

    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class StoreError(UserError):
    """A mask store that is missing, damaged, of another version, or made with other settings."""


class ModelError(UserError):
    """A model directory or checkpoint that is missing, incomplete, or of an unsuitable shape."""
