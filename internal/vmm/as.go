package vmm

import "reflect"

// As finds an optional interface of a VM, as a type assertion does, unless the VM is a Limited
// one that hides it.
func As[T any](vm VM) (T, bool) {
	if l, ok := vm.(Limited); ok {
		if l.Hides(reflect.TypeFor[T]()) {
			var none T
			return none, false
		}
		vm = l.Whole()
	}
	found, ok := vm.(T)
	return found, ok
}

// A Limited VM has some of the optional interfaces of another VM, and hides the rest of them.
// Without it each set of interfaces would need a type.
type Limited interface {
	VM
	Whole() VM
	Hides(optional reflect.Type) bool
}
