"""NFS, as far as one process can tell: what is open is not removed but gets another name, which cannot go."""

import errno
import itertools
import os
import re


def behaves(monkeypatch):
    """From now on removing a file that this process has open or mapped leaves it as `.nfs` and a number."""
    unlink, remove, rename, count = os.unlink, os.remove, os.rename, itertools.count()

    def is_open(path: str) -> bool:
        links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
        held = {os.readlink(x) for x in links if os.path.islink(x)}
        with open("/proc/self/maps") as maps:
            held |= set(re.findall(r" (/.*)$", maps.read(), re.MULTILINE))
        return os.path.realpath(path) in held

    def keep(path: str):
        rename(path, os.path.join(os.path.dirname(path), f".nfs{next(count):08d}"))

    def removing(real):
        def removed(path, *, dir_fd=None):
            folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            whole = os.path.abspath(os.path.join(folder, os.fspath(path)))
            if is_open(whole):
                if ".nfs" in whole:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), whole)
                return keep(whole)
            return real(path, dir_fd=dir_fd)

        return removed

    def renaming(real):
        def renamed(source, target, **more):
            if os.path.isfile(target) and is_open(target):
                keep(os.path.abspath(target))
            real(source, target, **more)

        return renamed

    monkeypatch.setattr(os, "unlink", removing(unlink))
    monkeypatch.setattr(os, "remove", removing(remove))
    monkeypatch.setattr(os, "rename", renaming(os.rename))
    monkeypatch.setattr(os, "replace", renaming(os.replace))
