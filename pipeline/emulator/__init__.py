"""An emulator of Anthropic's Messages, Message Batches and Files APIs, for demos and tests without a key or network."""

from pipeline.emulator.clock import Clock
from pipeline.emulator.emulator import Emulator
from pipeline.emulator.errors import EmulatorError
from pipeline.emulator.rules import Fault
from pipeline.emulator.running import RunningEmulator, serve, start
from pipeline.emulator.settings import Settings

__all__ = ["Clock", "Emulator", "EmulatorError", "Fault", "RunningEmulator", "Settings", "serve", "start"]
