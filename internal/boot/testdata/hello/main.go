// Command hello is a static program, the smallest of its kind.
package main

import "os"

func main() { os.Stdout.WriteString("hello\n") }
