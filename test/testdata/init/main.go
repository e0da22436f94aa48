// Command init is the whole userland of a guest: its process 1 and its shell.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if filepath.Base(os.Args[0]) == "sh" {
		// No shell at all, but enough to see what one is asked to do.
		fmt.Println(os.Args[len(os.Args)-1])
		return
	}
	fmt.Println("the init of this guest runs")
	for {
		time.Sleep(time.Hour)
	}
}
