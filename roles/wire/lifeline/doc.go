// Package lifeline holds sockets that the kernel closes first when the process is
// killed.
//
// A process that is killed takes milliseconds to go: its last thread frees the memory,
// then closes the files that all threads share, one after the other, and until then
// nobody can see that it is dead. But a thread may have files of its own, and those
// are closed when that thread ends, which is at once. So [Hold] moves a connection,
// and [Listen] a listening socket, to a thread that has nothing else: whoever is
// connected reads the end, and whoever dials is refused, as soon as no code of the
// process will run again, and before its memory is freed. (Linux: SIGKILL, and the
// end of a process by exit or panic, end all threads; unshare(2), CLONE_FILES.)
//
// What is held is not among the files of the process that /proc/PID/fd shows, but
// among those of a thread, /proc/PID/task/TID/fd.
package lifeline
