// Package mock runs machines without a VMM.
//
// Such a machine has power, a console, network cards and an agent that speaks
// the protocol of every guest, but no kernel of its own. What answers is one of
// three things:
//
//   - processes of this host in namespaces of their own (user, mount, PID, UTS,
//     IPC and network), with attest's real agent: the backend "mock" of users.
//     Commands, files, waits and networks are real there;
//   - canned answers (Script), also for users. Nothing is executed;
//   - the real agent in this process (Options.InProcess), whose commands run on
//     the host as they are. It is for the tests of this repository.
//
// In none of them the agent touches the host's name, files, clock, entropy or
// power switch: it changes its namespaces, or only what the mock remembers.
//
// Tests of what uses a backend make one of their own by New. They choose what its
// machines can do (Options.Without), have them fail (Faults), and end them as a
// VMM or a guest would (Machine.End).
package mock
