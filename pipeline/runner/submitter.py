"""A thread that submits planned batches while the next ones are being planned."""

import threading

from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable, LostRace, RunEnded
from pipeline.events.runs import Unreachable
from pipeline.steps.submit import submit_due


class Submitter:
    """A thread that submits planned batches while the next ones are being planned.

    It ends when the block ends and nothing is due any more; an error of it is raised there. An API that does not
    answer just ends it: the loop behind the planning is the one that has patience.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._woken = threading.Semaphore(0)
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="submit")

    def wake(self) -> None:
        """A batch has been planned. Raises what ended the thread."""
        if self._error is not None:
            raise self._error
        self._woken.release()

    def __enter__(self) -> "Submitter":
        self._thread.start()
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is not None and not isinstance(exc, (LostRace, RunEnded)):  # after these the driver goes on
            self._driver.stop.event.set()  # a POST under way holds its last bytes back
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
