"""A deployment that is watched for as long as something beside it takes."""

import threading

from profiler.attach.watch import watch
from traces.recording.reader import Recording


def watch_while(act, deployment, folder, **options):
    """Watch until `act`, which runs on a thread of its own, has returned; the recording."""
    stop, failed = threading.Event(), []

    def run():
        try:
            act()
        except BaseException as error:
            failed.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=run)
    thread.start()
    path = watch(deployment, folder, stop=stop, **options)
    thread.join()
    assert not failed, failed
    return Recording.open(path)
