// Package durable is the one way to write state files.
//
// A file that is written here holds its old content or its new content after a
// crash or a power cut, never a mix, and once a call has returned nil the new
// content is on disk. Every write goes through the same steps: a temporary file
// in the same directory, write, fsync, close, rename over the target, fsync of
// the directory. Leaving one out is a bug that only a power cut shows: without
// the first fsync the renamed file may be empty, without the second the rename
// itself may be forgotten.
//
// A call that returns an error has left the old content or the new content, and
// the caller cannot know which of them survives a power cut: repeat the call or
// treat the outcome as unknown.
//
// Some network file systems cannot fsync a directory and say so (ENOTSUP or
// EINVAL). That is tolerated, because their servers order the metadata. A
// failing fsync of a file is never tolerated, nor is it repeated on the same
// file: the kernel may have dropped the dirty pages it could not write, so the
// whole write starts again from the caller's data.
//
// A process that dies in the middle leaves a temporary file. Whoever lists a
// directory skips names for which [IsTemp] is true; the owner of a directory
// removes what is left over with [Sweep] before it starts to write.
//
// [FS] is the seam for fault tests: its Before hook sees every step by name and
// can make exactly that one fail.
//
// The package needs only the standard library and may be imported by anyone.
package durable
