"""Nothing of a Ray that was started here outlives its driver, however that ends.

Two of Ray's agents try for 60 s to tell a head that is gone of their raylet's death (process_watcher.py), and no
setting of Ray's shortens it. A process of ours sees the driver go, since the pipe between them closes, and ends them.
It also has the last word of a driver that could say none: one that was killed, or that Ray ended in C++ since its
raylet's object store was gone (connection.cc: "Terminate the process").
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil

_GRACE_S = 5.0  # in which Ray's processes end by themselves, most of them
_UNWOUND = b"."  # from a driver that ends in its own way, and says why itself


@contextlib.contextmanager
def ending_with_driver(others: set[psutil.Process], sockets: str, last_word: str) -> Iterator[None]:
    """What this process has started so far, ``others`` left out, is gone seconds after it, or after this is left.

    So is what was started since with ``sockets``, the folder of the raylet's, in its command line: a worker that was on
    its way up when its raylet died asks for a head that is gone for 60 s. ``last_word``: to standard error, where this
    is not left.
    """
    pids = [str(process.pid) for process in children() - others]
    # In a session of its own: Ctrl-C is for the driver.
    command = [sys.executable, __file__, sockets, last_word, *pids]
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        reaper.communicate(_UNWOUND)


def children() -> set[psutil.Process]:
    """What this process has started and still runs, directly or not."""
    return set(psutil.Process().children(recursive=True))


def main(sockets: str, last_word: str, pids: list[str]) -> None:
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # gone by now
            processes.append(psutil.Process(int(pid)))
    if not sys.stdin.buffer.read():  # to the end, which is the driver's
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(2, f"{last_word}\n".encode())
    processes += connected_to(sockets)
    left = psutil.wait_procs(processes, timeout=_GRACE_S)[1]
    for process in {*left, *connected_to(sockets)}:
        with contextlib.suppress(psutil.NoSuchProcess):  # or another has its number by now
            process.kill()


def connected_to(sockets: str) -> list[psutil.Process]:
    """Processes whose command line has a path in ``sockets``, this one left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(sockets in word for word in process.cmdline()):
                found.append(process)
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
