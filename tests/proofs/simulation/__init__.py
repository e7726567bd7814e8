"""Run random schedules of several drivers over one small job, each from a seed, and check rules after every step.

A schedule starts drivers (`run`, `collect`, `retry`, `cancel`, `trial`), lets each run for a few moments, suspends it
in the middle of a create call or a download, kills or wakes it, loses responses, lets batches expire, changes the
source, and advances the clock. At the end all faults are cleared, and the job must be finished, and its trial if it has
one: see `Rules` and `Finale`.

The code is that of the pipeline, except for time, random numbers and threads. The threads of the drivers take turns,
one at a time, from one moment to the next. Moments are before and after each transaction that writes, and around each
call. random.Random(seed) decides which thread runs and what happens in between, and makes nonces and ids, so that a
seed replays exactly.

    python -m tests.proofs.simulation --seed 17 -v         one schedule, step by step
    python -m tests.proofs.simulation --seconds 600        as many schedules as fit, from a random seed on
"""
