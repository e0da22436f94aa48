// Command hello greets everybody who connects to port 8080.
package main

import (
	"fmt"
	"log"
	"net"
)

const greeting = "Hello"

func main() {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(c, "%s, %v\n", greeting, c.RemoteAddr())
		c.Close()
	}
}
