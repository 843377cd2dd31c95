package pgtenancy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pgtenancy/pgtenancy"
)

// A disk that is full in the middle of an object is an error, and nothing of the object stays.
func TestBackupDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { check(t, "Unmount", syscall.Unmount(dir, 0)) })
	db := newFleetDB(t)
	fleet := db.migrated(t, shopFiles(db))
	acme, globex := provision(t, fleet, "acme"), provision(t, fleet, "globex")
	db.execTenant(t, acme, "insert into notes (body) select md5(i::text) || md5(random()::text) from generate_series(1, 30000) i")
	db.execTenant(t, globex, "insert into notes (body) values ('small')")
	store := pgtenancy.DirStore(filepath.Join(dir, "backups"))
	report, err := fleet.Backup(bare(t), store, &pgtenancy.BackupOpts{Parallel: 1})
	checkIs(t, "Backup", err, syscall.ENOSPC)
	var failed *pgtenancy.BackupError
	if !errors.As(err, &failed) || len(failed.Failed) != 1 || failed.Failed[0].Tenant.ID() != "acme" {
		t.Errorf("Backup: %v", err)
	}
	checkEqual(t, "objects", len(report.Objects), 1)
	var names []string
	check(t, "WalkDir", filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	checkList(t, "files", names, "backups/"+report.Objects[0].Name)
	_, err = pgtenancy.Verify(bare(t), store, report.Objects[0].Name)
	check(t, "Verify", err)
	db.execTenant(t, acme, "truncate notes")
	checkEqual(t, "objects", len(backup(t, fleet, store, nil)), 2)
}
