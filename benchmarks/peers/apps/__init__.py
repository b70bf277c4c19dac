"""
One module for each system: the task, and how it's submitted and waited for.

A module has `submit(kind, argument)`, which returns a handle, `wait(handle)`, which returns once the result can be
read, and `finished(handle)`, which tells at once whether it can be. Where the system has a way to submit many tasks,
`submit_many(kind, arguments)` is that and returns the handles. Where it needs to be opened first, `session()` is an
asynchronous context manager. All of these may be coroutine functions, except for `session` itself.
"""
