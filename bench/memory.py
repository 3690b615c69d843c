"""Peak memory of a process and its descendants."""

import threading

import psutil


class PeakMemory:
    """Samples the proportional set size (shared pages counted once) every 0.25 s until closed."""

    def __init__(self, process_id: int) -> None:
        self.peak_bytes = 0
        self._process = psutil.Process(process_id)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            self.peak_bytes = max(self.peak_bytes, self._now())

    def _now(self) -> int:
        total = 0
        try:
            for process in [self._process, *self._process.children(recursive=True)]:
                total += _bytes_of(process)
        except psutil.NoSuchProcess:
            return total
        return total


def _bytes_of(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(memory, "pss", memory.rss))
