"""What is the same in all schedules: times, accounts, machines, settings."""

from datetime import UTC, datetime

from pipeline.driver.settings import Settings

START = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
ACCOUNTS = ("test", "test@other-team")
CREDIT = "Your credit balance is too low to access the API."  #: comes as an invalid request
ACCOUNT_ERRORS = ("authentication_error", "permission_error", "billing_error")
MACHINES = ("boot of one machine", "boot of another")
SETTINGS = Settings(timeout=600.0, grace=300.0, lease=120.0)
ON_THE_WIRE = 60.0  # the longest time in seconds that a body needs to reach the API
# seconds until a batch shows in the listing; plus ON_THE_WIRE and all clock errors, less than the grace time
LAG = 100.0
PATIENCE = 80  # how often the clock is advanced for waiting drivers, after all faults are cleared
SECONDS = (1, 5, 11, 31, 61, 61, 125, 250, 400, 700, 1_300, 4_000, 25_000, 100_000)
MOMENTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 2_000, 2_000)


class Violation(Exception):
    """A rule that must always hold is violated."""
