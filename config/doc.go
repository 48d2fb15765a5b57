// Package config reads the settings of a daemon and of the command line client.
//
// A daemon's settings come from four layers, each over the one before it:
// built-in defaults, the configuration file, UAC_* environment variables and
// command line flags. They are read once, at start, checked as a whole and
// handed on as plain structs; nothing else in the program reads a file of
// settings or the environment.
//
// # Strictness
//
// A daemon that starts with a setting it did not understand is worse than one
// that does not start. So every key must exist (the nearest one is suggested),
// every value must have its type, relations between settings must hold, and
// all problems are reported together, each with its key, its value and where
// it was set. Only the default file may be absent.
//
// # Why viper is not the reader
//
// viper lays the layers over each other and decodes the result. It does not
// read the file, for three reasons: it lower-cases every key, which corrupts
// user data such as labels; it has no line numbers, so its errors cannot say
// where; and it silently keeps the last of two equal keys. A strict reader
// (strict.go) turns each source into a checked layer first. Maps with free
// keys, such as agent.labels, never pass through viper at all.
//
// # Keys
//
// The keys are the yaml tags of [Config], joined by dots. Three more tags
// belong to the fields: secret:"true" (masked wherever it is shown),
// unit:"bytes" (an integer written as 4GiB) and oneof:"a b" (the words
// allowed). A component that brings its own Config struct needs nothing but
// these tags; it does not import this package.
package config
