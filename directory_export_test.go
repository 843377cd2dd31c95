package pgtenancy

import (
	"context"
	"time"
)

// CheckOften makes a directory that was not asked for anything yet look after its connection so often, and wait so long for
// an answer.
func (d *CachedDirectory) CheckOften(every, limit time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listener.check, d.listener.limit = every, limit
}

// Notify sends what the control plane sends.
func (f *Fleet) Notify(ctx context.Context, id string) error {
	step := notifyStep(id)
	_, err := f.owner.conns.Exec(ctx, step.SQL, step.Args...)
	return err
}
