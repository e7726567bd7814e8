"""The actions of a schedule, one after the other."""

from collections.abc import Callable

from pipeline.emulator.http import router
from pipeline.states import AT_THE_API, RowState
from tests.proofs.simulation.commands import COMMANDS, OF_TRIAL, OFTEN_RETRIED, WITHOUT_TOOLS, command
from tests.proofs.simulation.constants import ACCOUNTS, MOMENTS, SECONDS
from tests.proofs.simulation.drivers import Process
from tests.proofs.simulation.faults import CUT_OFF, FAULTS, HABITS, ODD_LINES
from tests.proofs.simulation.finale import Finale
from tests.proofs.simulation.world import World


class Schedule:
    """The actions in a world, one after the other, and the end of the schedule."""

    def __init__(self, world: World) -> None:
        self._world = world
        chance = world.chance
        always: dict[Callable[[], bool], float] = {self.start: 14, self.go_on: 34, self.turn: 14}
        sometimes: dict[Callable[[], bool], float] = {
            self.break_something: 12,
            self.mend: 4,
            self.stop: 5,
            self.wake: 4,
            self.kill: 5,
            self.interrupt: 1,
            self.step_clock: 1,
            self.change_source: 7,
            self.change_recipe: 1,
            self.cancel_at_the_api: 2,
            self.delete_at_the_api: 1,
            self.other_program: 2,
            self.lose_a_body: 1,
        }
        rarely: dict[Callable[[], bool], float] = {self.hide_from_listing: 3, self.turn_far: 1}
        chosen = {action: weight for action, weight in sometimes.items() if chance.random() < 0.6}
        chosen |= {action: weight for action, weight in rarely.items() if chance.random() < 0.08}
        if world.ways.retries:
            chosen[self.kill_a_retry] = 12.0
        if world.ways.rounds > 1:
            chosen[self.end_in_a_call] = 20.0
        self._actions = always | chosen
        self._faults = chance.sample(FAULTS, chance.randint(1, 6))
        self._commands = COMMANDS | (OFTEN_RETRIED if world.ways.retries else {})
        self._commands |= OF_TRIAL if world.ways.trial else {}
        self._commands |= WITHOUT_TOOLS if world.ways.rounds > 1 else {}

    def play(self) -> None:
        """Run the schedule. Raises Violation."""
        world, chance = self._world, self._world.chance
        world.say(f"{world.ways}")
        self._add_habits()
        self._begin(("trial" if world.ways.trial and chance.random() < 0.4 else "run") + self._waits())
        for _ in range(chance.randint(10, 25) if world.ways.rounds == 1 else chance.randint(25, 60)):
            while not chance.choices(list(self._actions), list(self._actions.values()))[0]():
                """Choose again: this action is not possible now."""
            world.check()
        Finale(self, world).play()

    # drivers

    def start(self) -> bool:
        """Start another driver, and let it run for a while."""
        if len(self._living()) >= 4:
            return False
        self._begin(self._world.chance.choices(list(self._commands), list(self._commands.values()))[0])
        return True

    def _begin(self, name: str) -> None:
        chance = self._world.chance
        account = ACCOUNTS[0] if chance.random() < 0.7 else ACCOUNTS[self._world.ways.accounts - 1]
        skew = chance.choice((0.0, 0.0, chance.uniform(-120, 120), chance.choice((-3600.0, 3600.0))))
        self.go(self.begin(name, account, skew), chance.choice(MOMENTS))

    def begin(self, name: str, account: str = ACCOUNTS[0], skew: float = 0.0) -> Process:
        """Return a new driver that has not run yet."""
        world = self._world
        world.started[name] += 1
        world.started["retry"] += name.startswith("retry ")
        title = f"driver {len(world.processes) + 1} ({name})"
        world.say(f"{title} starts, {skew:+.0f} s ahead, as {account}")
        process = Process(world, title, account, skew, command(world, name))
        world.processes.append(process)
        return process

    def _waits(self) -> str:
        """Return the option of a command that waits for its answers, or of one that does not."""
        return "" if self._world.chance.random() < 0.6 else " --detach"

    def go_on(self) -> bool:
        """Let one driver run for a while."""
        ready = [process for process in self._world.processes if process.ready]
        if not ready:
            return False
        self.go(self._world.chance.choice(ready), self._world.chance.choice(MOMENTS))
        return True

    def go(self, process: Process, moments: int) -> None:
        """Let a driver run for so many moments, or until it waits. Raises Violation if it does neither in 2,000."""
        world, given = self._world, moments
        while moments > 0 and (ready := process.ready):
            moments = world.turns.give(world.chance.choice(ready), moments)
        at = ", ".join(task.at for task in process.tasks if not task.done)
        said = f"{process.state}: {process.error or process.result}" if process.state == "ended" else f"at {at}"
        world.say(f"  {process.name} goes on, {said}")
        if moments <= 0 and given == max(MOMENTS):
            world.violated(f"{process.name} does not come to rest")

    def _living(self) -> list[Process]:
        return [process for process in self._world.processes if process.state in ("running", "stopped")]

    def _choose(self, *states: str) -> Process | None:
        among = [process for process in self._world.processes if process.state in states]
        return self._world.chance.choice(among) if among else None

    def stop(self) -> bool:
        """Suspend a driver at its current moment."""
        process = self._choose("running")
        if process is None:
            return False
        self._suspend(process)
        return True

    def _suspend(self, process: Process) -> None:
        process.state, process.frozen = "stopped", self._world.chance.random() < 0.3
        process.was_stopped = True
        self._world.say(f"{process.name} is stopped{' with its machine' if process.frozen else ''}")

    def wake(self) -> bool:
        """Let a suspended driver continue."""
        process = self._choose("stopped")
        if process is None:
            return False
        self.wake_up(process)
        return True

    def wake_up(self, process: Process) -> None:
        """Wake its threads in a random order."""
        process.state = "running"
        self._world.say(f"{process.name} wakes up")
        if self._world.chance.random() < 0.5:
            for renewal in list(process.renewals):
                renewal.go()

    def kill(self) -> bool:
        """Kill a driver. Only drivers on the same machine can see that."""
        process = self._choose("running", "stopped")
        if process is None:
            return False
        self._kill(process)
        return True

    def kill_a_retry(self) -> bool:
        """Kill a retry that has marked rows and has not put them into a batch."""
        world = self._world
        failed = [answer for answer in world.look().answers.values() if answer.status == RowState.TRUNCATED]
        if len(self._living()) >= 4 or not failed or self._waits_for_retry():
            return False
        process = self.begin("retry --set")
        for _ in range(100):
            if not process.ready or self._waits_for_retry():
                break
            self.go(process, 1)
        if process.state == "running":
            self._kill(process)
        return True

    def end_in_a_call(self) -> bool:
        """Let drivers collect what has ended until one is in the middle of a call of a tool, and kill or suspend it."""
        world, living = self._world, self._living()
        if not any(batch.state in AT_THE_API for batch in world.look().batches.values()):
            return False
        self.turn_by(max(61, min(world.ways.processing_seconds, 3_600)))
        running = [process for process in living if process.state == "running"]
        running += [self.begin("collect")] if len(living) < 4 else []
        for process in running:
            for _ in range(150):
                if not process.ready or process.is_in_a_call:
                    break
                self.go(process, 1)
            if process.is_in_a_call:
                (self._kill if world.chance.random() < 0.6 else self._suspend)(process)
                break
        return True

    def _waits_for_retry(self) -> bool:
        """Return whether a row waits for a retry."""
        seen = self._world.look()
        return any(row.state == RowState.PENDING and seen.runs[row.run_id].retry for row in seen.rows)

    def _kill(self, process: Process) -> None:
        process.state = "dead"
        for parcel in process.parcels:
            parcel.lost = parcel.arrived_at is None and self._world.chance.random() < 0.5
        self._world.say(f"{process.name} is dead")

    def interrupt(self) -> bool:
        """Interrupt a driver by Ctrl-C."""
        process = self._choose("running")
        if process is None:
            return False
        process.stop.event.set()
        self._world.say(f"{process.name} is asked to stop")
        return True

    def step_clock(self) -> bool:
        """Set a driver's clock right or wrong."""
        process = self._choose("running", "stopped")
        if process is None:
            return False
        chance = self._world.chance
        step = chance.choice(
            (chance.uniform(-60, 60), chance.uniform(-4_000, 4_000), chance.uniform(-100_000, 100_000))
        )
        process.skew += step
        self._world.say(f"the clock of {process.name} is put by {step:+.0f} s")
        return True

    # time and the API

    def turn(self) -> bool:
        """Advance the clock by a random time."""
        self.turn_by(self._world.chance.choice(SECONDS))
        return True

    def turn_far(self) -> bool:
        """Advance the clock by weeks."""
        self.turn_by(86_400.0 * self._world.chance.choice((2, 14, 30)))
        return True

    def turn_by(self, seconds: float) -> None:
        """Advance the clock by so much."""
        self._world.turn(seconds)
        self._world.say(f"{seconds:,.0f} s have passed")

    def break_something(self) -> bool:
        """Add a random fault to the API."""
        fault = self._world.chance.choice(self._faults)
        if fault["do"] == "repeat_answer" and self._world.others:
            return False  # an answer with a young foreign batch could not be told apart from one of ours
        self._world.emulator.add_fault(**fault)
        self._world.too_large |= fault.get("status") == 413
        self._world.odd |= fault.get("damage") in ODD_LINES
        self._world.cached |= fault["do"] == "repeat_answer"
        self._world.say(f"at the API: {fault}")
        return True

    def hide_from_listing(self) -> bool:
        """Let batches show in the listing later than the grace time."""
        world = self._world
        seconds = world.chance.choice((1_000, 5_000))
        world.hides = True
        world.hidden |= self._unowned()
        world.emulator.add_fault(on="list", do="lag", seconds=seconds)
        world.say(f"at the API: batches show in the listing after {seconds} s")
        return True

    def _unowned(self) -> set[str]:
        """Return batches at the API that the state database does not have yet."""
        owned = {sending.api_id for sending in self._world.look().sendings}
        return {api_id for api_id in self._world.books.batches if api_id not in owned}

    def mend(self) -> bool:
        """Clear all faults."""
        self._world.emulator.clear_faults()
        self._add_habits()
        self._world.hides = False
        self._world.say("at the API: all is well")
        return True

    def _add_habits(self) -> None:
        """Add what is not a fault of the API: many answers are cut off in a schedule with many retries; some pause."""
        if self._world.ways.retries:
            self._world.emulator.add_fault(**CUT_OFF)
        for habit in HABITS if self._world.ways.rounds > 1 else ():
            self._world.emulator.add_fault(**habit)

    def _batch_at_the_api(self, *states: str) -> str | None:
        store = self._world.emulator._store
        among = [
            api_id
            for api_id, accepted in self._world.books.batches.items()
            if store.get(api_id).status in states
            and self._world.books.is_there(api_id)
            and accepted.account == "default"
        ]
        return self._world.chance.choice(among) if among else None

    def cancel_at_the_api(self) -> bool:
        """Cancel a batch as a person does in the console."""
        api_id = self._batch_at_the_api("in_progress")
        if api_id is None:
            return False
        self._world.console("POST", f"{router.CREATE_PATH}/{api_id}/cancel")
        self._world.say(f"somebody cancels {api_id}")
        return True

    def delete_at_the_api(self) -> bool:
        """Delete a batch as a person does in the console. A batch whose id no driver knows is then gone for good."""
        api_id = self._batch_at_the_api("ended")
        if api_id is None:
            return False
        self._world.hidden |= {api_id} & self._unowned()
        self._world.books.read_results()
        self._world.console("DELETE", f"{router.CREATE_PATH}/{api_id}")
        self._world.say(f"somebody deletes {api_id}")
        return True

    def other_program(self) -> bool:
        """Send a batch as another program, often of the same size as ours."""
        if self._world.cached:
            return False
        number = self._world.chance.randint(1, 3)
        self._world.other_program(number)
        self._world.say(f"another program sends a batch of {number}")
        return True

    # source, job, spool

    def change_source(self) -> bool:
        """Change rows of the source, change them back, make them equal, add and remove some."""
        world, chance = self._world, self._world.chance
        for _ in range(chance.randint(1, 3)):
            key = chance.choice(sorted(world.texts))
            text, note = world.source.get(key, (None, None))
            kind = chance.choice(("changed", "changed", "changed back", "empty", "equal", "noted", "removed", "new"))
            if kind == "removed" or (kind == "noted" and text is None):
                world.source.pop(key, None)
                world.edits[key] += 1
            elif kind == "changed back":
                world.put(key, chance.choice(world.texts[key]), note)
            elif kind == "equal":
                world.put(key, chance.choice(world.texts[chance.choice(sorted(world.texts))]), note)
            elif kind == "noted":
                world.put(key, text)
            else:
                world.put(f"r{len(world.texts)}" if kind == "new" else key, "" if kind == "empty" else None, note)
            world.say(f"source: {key} {kind}")
        world.write_source()
        return True

    def change_recipe(self) -> bool:
        """Change the prompt of the job."""
        self._world.ways.recipe += 1
        self._world.say(f"the job has recipe {self._world.ways.recipe}")
        return True

    def lose_a_body(self) -> bool:
        """Remove a body from the spool."""
        bodies = sorted((self._world.folder / "spool").glob("*/*.json"))
        if not bodies:
            return False
        body = self._world.chance.choice(bodies)
        body.unlink()
        self._world.bodies_lost = True
        self._world.say(f"{body.name} is gone")
        return True
