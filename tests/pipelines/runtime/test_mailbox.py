"""The mailbox of a job outlives its process."""

import os

import psutil
import ray

from pipelines.runtime.mailbox import Failure, create_mailbox


def test_a_mailbox_whose_process_is_lost_comes_back_empty(ray_cluster: None) -> None:
    mailbox = create_mailbox()
    ray.get(mailbox.post.remote("before"))
    first = psutil.Process(ray.get(mailbox.__ray_call__.remote(lambda _: os.getpid())))
    first.kill()
    first.wait(10)
    assert ray.get(mailbox.drain.remote()) == []
    ray.get(mailbox.post.remote("after"))
    ray.get(mailbox.fail.remote(Failure("the disk is full", final=True)))
    assert ray.get(mailbox.drain.remote()) == ["after"]
    assert ray.get(mailbox.failure.remote()) == Failure("the disk is full", final=True)
    ray.kill(mailbox)
