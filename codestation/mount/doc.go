// Package mount is the only way to touch the shared mount.
//
// A file system that hangs takes its callers with it: a thread that waits for a
// dead file server cannot be killed, and a process with such a thread stays, with
// its sockets and locks, even after kill -9. So the process that uses this package
// never makes a system call on the mount. A child process does ([Serve]); it is
// started with nothing but two pipes and is told what to do in frames:
//
//	parent                                child
//	  call  {id, op, name, ...} + bytes ->
//	                                   <-  answer {id, error, ...} + bytes
//
// Each call opens the directory of the mount anew and reads the sentinel file
// through what it opened before it does anything else: an empty directory under a
// mount that is gone, or the mount of another cluster, is never read or written.
// Nothing is held open between two calls, so the mount can be unmounted.
//
// Each call has a deadline. When it has passed, the mount counts as hung: the child
// is killed and abandoned, because it may not end before the file server answers,
// and what was under way fails with [ErrUnavailable]. From then on calls fail at
// once, until a fresh child has written and read on the mount. At most four
// children that do not end exist at a time; then none is started until one is gone.
//
// An error that wraps [ErrUnavailable] means that the outcome is unknown: a write
// may have taken effect or still do so later, once, because a killed child may
// finish the one system call that it is in. Whoever repeats a write therefore
// repeats it with the same bytes at the same place.
//
// Names are slash-separated paths below the directory of the mount. Names whose
// first part begins with ".uac-" belong to this package:
//
//	.uac-mount    the sentinel: JSON, made once by [Init]
//	.uac-tmp/     files in the making; what is older than a day is removed
//
// The mount holds content only. Nothing here locks, and no file is replaced.
package mount
