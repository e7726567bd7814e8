"""Submit planned batches in a thread while the next ones are being planned. Edge: SQL, HTTP, files."""

import threading

from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable, LostRace, RunEnded
from pipeline.events.runs import Unreachable
from pipeline.steps.submit import submit_due


class Submitter:
    """A thread that submits planned batches while the next ones are being planned.

    Use it in a with block. The thread ends when the block has ended and no batch is due; the end of the block raises
    the error of the thread. If the API does not answer, the thread just ends: the loop that follows the planning waits
    for the API and submits the rest.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._woken = threading.Semaphore(0)
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="submit")

    def wake(self) -> None:
        """Tell the thread that a batch has been planned. Raises the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error
        self.nudge()

    def nudge(self) -> None:
        """Tell the thread that a batch has been planned. For threads that cannot raise its error."""
        self._woken.release()

    def __enter__(self) -> "Submitter":
        self._thread.start()
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is not None and not isinstance(exc, (LostRace, RunEnded)):  # after these the driver continues
            self._driver.stop.event.set()  # a create call under way holds back its last bytes
        self._ending = True
        self._woken.release()
        self._thread.join()
        if exc is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            submit_due(self._driver)
            while not self._ending:
                self._woken.acquire()
                submit_due(self._driver)
        except ApiUnreachable as exc:
            self._driver.tell(Unreachable(problem=str(exc), wait=0.0))
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread that plans
            self._error = exc
