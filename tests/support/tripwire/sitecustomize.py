"""Log everything a process does that an engine must never cause; used by `test_tripwires`.

Python imports this module at start-up if its folder is on PYTHONPATH, and so in every child process
too. TRIPWIRE_LOG is the file that gets a line for each trip. TRIPWIRE_READABLE and
TRIPWIRE_WRITABLE are directories in which files may be read and written. TRIPWIRE_DATA are
directories, some of them readable, whose files are only data and never code.
"""

import atexit
import os
import sys
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
COMMANDS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
KNOWN_PROGRAMS = ("nvidia-smi", "tegrastats")


def roots(name: str) -> tuple[str, ...]:
    entries = os.environ.get(f"TRIPWIRE_{name}", "").split(os.pathsep)
    return tuple(os.path.realpath(entry) for entry in entries if entry)


DATA = roots("DATA")
READABLE = (
    *roots("READABLE"),
    *map(os.path.realpath, (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev")),
    *map(os.path.realpath, ("/etc", "/usr", "/lib", "/lib64", "/bin", "/var/lib/nvpmodel")),
)
WRITABLE = (*roots("WRITABLE"), "/dev", "/proc")
REAL, ABSOLUTE, READ, WRITE, OPEN = (
    *(os.path.realpath, os.path.abspath, os.read, os.write, os.open),
)
state = {"inside": False}


def is_in(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == entry or path.startswith(entry + os.sep) for entry in directories)


def trip(what: str, *values: object) -> None:
    text = f"{what}: {' '.join(map(repr, values))}\n".encode("utf-8", "backslashreplace")
    file = OPEN(os.environ["TRIPWIRE_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    WRITE(file, text)
    os.close(file)


def is_data(name: object) -> bool:
    if not isinstance(name, (str, bytes)):
        return False
    path = os.fsdecode(name)
    return bool(path) and not path.startswith("<") and is_in(REAL(path), DATA)


def on_open(path: object, mode: object, flags: object) -> None:
    if not isinstance(path, (str, bytes)):
        return  # a file descriptor that is already open
    real = REAL(os.fsdecode(path))
    writes = bool(flags & WRITES) if isinstance(flags, int) else False
    if writes and not is_in(real, WRITABLE):
        trip("writes", real)
    elif not writes and not is_in(real, (*READABLE, *WRITABLE)):
        trip("reads", real)


def on_popen(executable: object, given: Any, *_: object) -> None:
    arguments = [os.fsdecode(item) for item in given]
    is_ours = arguments[0] == sys.executable and "'bita." in arguments[2]
    if not is_ours and os.path.basename(arguments[0]) not in KNOWN_PROGRAMS:
        trip("starts", executable, arguments)


def on_event(event: str, values: Any) -> None:
    if state["inside"]:
        return
    state["inside"] = True
    try:
        if event == "open":
            on_open(*values)
        elif event == "exec" and is_data(values[0].co_filename):
            trip("runs", values[0].co_filename)
        elif event == "compile" and is_data(values[1]):
            trip("compiles", values[1])
        elif event == "import" and is_data(values[1]):
            trip("imports", values[:2])
        elif event == "ctypes.dlopen" and values[0] and is_data(values[0]):
            trip("loads", values[0])
        elif event == "subprocess.Popen":
            on_popen(*values)
        elif event in COMMANDS:
            trip("starts", values)
        elif event == "socket.connect":
            trip("connects", values[1:])
    finally:
        state["inside"] = False


def at_exit() -> None:
    """Check the files that libraries have mapped, because Python does not see them opened."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        lines = [line.split(maxsplit=5) for line in file]
    for parts in lines:
        path = parts[5].strip() if len(parts) > 5 else ""
        if path.startswith("/") and not path.startswith(("/memfd", "/SYSV", "/[")):
            if not is_in(path, (*READABLE, *WRITABLE)):
                trip("maps", path)
            elif "x" in parts[1] and is_in(path, DATA):
                trip("maps as code", path)


if os.path.isdir("/proc/self"):
    atexit.register(at_exit)
sys.addaudithook(on_event)
