"""The GPU's own meters (NVML) while something runs: peak memory in use, energy, power, what slows it down. Needs nothing beyond
Python; where there is no NVML, every number is None and `why` says so."""
import ctypes
import os
import threading
import time

NOT_FOUND = "libnvidia-ml.so.1 is not here"
SLOWDOWNS = {0x4: "power limit", 0x8: "hardware slowdown", 0x20: "heat (driver)", 0x40: "heat (hardware)", 0x80: "power supply"}


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Meters:
    """One GPU. `ordinal` counts as CUDA does: through CUDA_VISIBLE_DEVICES where that is set."""

    def __init__(self, ordinal: int = 0):
        self.why, self.library, self.handle = None, None, ctypes.c_void_p()
        visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
        name = visible[ordinal] if ordinal < len(visible) else str(ordinal)
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            self.why = NOT_FOUND
            return
        self._call("nvmlInit_v2")
        if name.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(name)), ctypes.byref(self.handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", name.encode(), ctypes.byref(self.handle))

    def _call(self, name: str, *args) -> bool:
        if self.why:
            return False
        function = getattr(self.library, name, None)
        status = function(*args) if function else -1
        # Without a start or a device there is nothing to ask; a meter that is missing is only itself.
        if status and name.startswith(("nvmlInit", "nvmlDeviceGetHandle")):
            self.why = f"{name} answers {status}"
        return status == 0

    def _number(self, name: str, kind):
        value = kind()
        return value.value if self._call(name, self.handle, ctypes.byref(value)) else None

    def used(self):
        """Bytes of the GPU's memory in use, by everybody."""
        memory = _Memory()
        return memory.used if self._call("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(memory)) else None

    def joules(self):
        """Energy since the driver was loaded."""
        value = self._number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        return None if value is None else value / 1e3

    def watts(self):
        value = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint)
        return None if value is None else value / 1e3

    def slowdowns(self) -> list:
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong) or 0
        return [word for bit, word in SLOWDOWNS.items() if bits & bit]


class Watch:
    """Looks at the meters a few times a second, as long as its `with` block runs."""

    def __init__(self, meters: Meters, every: float = 0.2):
        self.meters, self.every, self.done = meters, every, threading.Event()
        self.base, self.peak, self.slowed, self.watts = meters.used(), meters.used(), set(), []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.done.wait(self.every):
            self.look()

    def look(self):
        used = self.meters.used()
        if used is not None:
            self.peak = max(self.peak or 0, used)
        self.slowed.update(self.meters.slowdowns())
        if (watts := self.meters.watts()) is not None:
            self.watts.append(watts)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.look()
        self.done.set()
        self.thread.join()

    def facts(self) -> dict:
        return dict(device_peak=self.peak, watts=max(self.watts, default=None), slowed=sorted(self.slowed))


class Energy:
    """Joules between two points in time."""

    def __init__(self, meters: Meters):
        self.meters, self.start, self.time = meters, meters.joules(), time.monotonic()

    def spent(self):
        now = self.meters.joules()
        return None if now is None or self.start is None else now - self.start
