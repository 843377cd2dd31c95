package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// brief is for what is not to be had.
var brief = &pgtenancy.ChangeOpts{Wait: 1}

// calls are the methods that change the state of acme.
func calls(fleet *pgtenancy.Fleet) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"suspend":  func(ctx context.Context) error { return fleet.Suspend(ctx, "acme", nil) },
		"resume":   func(ctx context.Context) error { return fleet.Resume(ctx, "acme", nil) },
		"delete":   func(ctx context.Context) error { return fleet.Delete(ctx, "acme", nil) },
		"undelete": func(ctx context.Context) error { return fleet.Undelete(ctx, "acme", nil) },
		"purge": func(ctx context.Context) error {
			_, err := fleet.Purge(ctx, "acme", &pgtenancy.PurgeOpts{Force: true})
			return err
		},
		"add a domain": func(ctx context.Context) error { return fleet.AddDomain(ctx, "acme", "new.example", nil) },
		"rename a domain": func(ctx context.Context) error {
			return fleet.RenameDomain(ctx, "acme", "old.example", "new.example", nil)
		},
		"remove a domain": func(ctx context.Context) error { return fleet.RemoveDomain(ctx, "acme", "old.example", nil) },
		"set attributes": func(ctx context.Context) error {
			return fleet.SetAttributes(ctx, "acme", map[string]string{"a": "b"}, nil)
		},
		"remove attributes": func(ctx context.Context) error { return fleet.RemoveAttributes(ctx, "acme", []string{"plan"}, nil) },
	}
}

// Every method from every state.
func TestStates(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	run := calls(fleet)
	state, notFound := pgtenancy.ErrTenantState, pgtenancy.ErrTenantNotFound
	states := []struct {
		name  string
		reach []string // the calls
		sql   string   // and SQL after them
		want  map[string]any
	}{
		{"active", nil, "", map[string]any{"suspend": "suspended", "resume": "active", "delete": "deleted", "undelete": "active", "purge": state}},
		{"suspended", []string{"suspend"}, "", map[string]any{"suspend": "suspended", "resume": "active", "delete": "deleted", "undelete": "suspended", "purge": state}},
		{"deleted", []string{"delete"}, "", map[string]any{
			"suspend": state, "resume": state, "delete": "deleted", "undelete": "active", "purge": "",
			"add a domain": state, "rename a domain": state, "set attributes": state, "remove attributes": state,
		}},
		{"deleted when it was suspended", []string{"suspend", "delete"}, "", map[string]any{"suspend": state, "resume": state, "delete": "deleted", "undelete": "suspended", "purge": ""}},
		{"provisioning", nil, "delete from pgtenancy.tenants; insert into pgtenancy.tenants (id, schema_name, state) values ('acme', 'tenant_acme', 'provisioning')", map[string]any{
			"suspend": state, "resume": state, "delete": "deleted", "undelete": state, "purge": state,
			"add a domain": state, "rename a domain": state, "set attributes": state, "remove attributes": state,
		}},
		{"deleted when it was being provisioned", nil, "update pgtenancy.tenants set state = 'deleted', deleted_from = 'provisioning'; update pgtenancy.tenants set deleted_from = 'provisioning'", map[string]any{
			"undelete": state, "delete": "deleted", "purge": "",
		}},
		{"deleted by SQL", nil, "update pgtenancy.tenants set state = 'deleted'", map[string]any{"undelete": "active", "delete": "deleted", "purge": ""}},
		{"being purged", []string{"delete"}, `update pgtenancy.tenants set purging = '{"tenant": "acme"}'`, map[string]any{
			"suspend": state, "resume": state, "delete": "deleted", "undelete": state, "purge": "",
		}},
		{"purged", []string{"delete", "purge"}, "", map[string]any{
			"suspend": notFound, "resume": notFound, "delete": notFound, "undelete": notFound, "purge": notFound, "add a domain": notFound,
			"rename a domain": notFound, "remove a domain": notFound, "set attributes": notFound, "remove attributes": notFound,
		}},
	}
	for _, s := range states {
		for name, want := range s.want {
			what := s.name + ": " + name
			_, err := fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{Domains: []string{"old.example"}, Attributes: map[string]string{"plan": "pro"}})
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for _, call := range s.reach {
				check(t, what+": "+call, run[call](bare(t)))
			}
			if s.sql != "" {
				db.exec(t, s.sql)
			}
			before := db.texts(t, "select t::text from pgtenancy.tenants t")
			err = run[name](bare(t))
			if refused, ok := want.(error); ok {
				checkIs(t, what, err, refused)
				checkList(t, what+": changed", db.texts(t, "select t::text from pgtenancy.tenants t"), before...)
			} else {
				check(t, what, err)
				checkEqual(t, what, strings.Join(db.texts(t, "select state from pgtenancy.tenants"), ""), want.(string))
			}
			if got := db.texts(t, "select state from pgtenancy.tenants"); len(got) == 1 && (got[0] == "active" || got[0] == "suspended") {
				checkEqual(t, what+": rows", db.count(t, "select count(*) from tenant_acme.notes"), 0) // the schema is where it was
			}
			db.exec(t, `delete from pgtenancy.tenants; delete from pgtenancy.migrations where tenant_id <> '';
				do $$ declare s text; begin for s in select nspname from pg_namespace where nspname = 'tenant_acme' or nspname like 'deleted:%' loop execute format('drop schema %I cascade', s); end loop; end $$`)
		}
	}
}

// The database holds to it whoever changes a row.
func TestStatesBySQL(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.migrated(t, notesFiles)
	conn := db.admin(t)
	allowed := "provisioning active,provisioning deleted,active suspended,active deleted,suspended active,suspended deleted,deleted active,deleted suspended"
	for _, from := range []string{"provisioning", "active", "suspended", "deleted"} {
		for _, to := range []string{"provisioning", "active", "suspended", "deleted"} {
			_, err := conn.Exec(bare(t), "insert into pgtenancy.tenants (id, schema_name, state) values ('acme', 'tenant_acme', $1)", from)
			check(t, "insert", err)
			_, err = conn.Exec(bare(t), "update pgtenancy.tenants set state = $1", to)
			if from == to || strings.Contains(allowed, from+" "+to) {
				check(t, from+" to "+to, err)
				checkEqual(t, from+" to "+to+": deleted_at is set", db.count(t, "select count(deleted_at) from pgtenancy.tenants") == 1, to == "deleted" && from != "deleted")
			} else {
				checkCode(t, from+" to "+to, err, "55000")
			}
			db.exec(t, "delete from pgtenancy.tenants")
		}
	}
	for _, column := range []string{"purging = '{}'", "deleted_schema = 'x'"} {
		db.exec(t, "insert into pgtenancy.tenants (id, schema_name, state) values ('acme', 'tenant_acme', 'deleted'); update pgtenancy.tenants set "+column)
		_, err := conn.Exec(bare(t), "update pgtenancy.tenants set state = 'active'")
		checkCode(t, "active with "+column, err, "55000")
		db.exec(t, "delete from pgtenancy.tenants")
	}
}

// history returns the changes of a tenant as text.
func history(t *testing.T, fleet *pgtenancy.Fleet, id string) (all []string) {
	t.Helper()
	for c, err := range fleet.Changes(bare(t), id) {
		if err != nil {
			t.Fatal(err)
		}
		if c.By == "" || c.At.IsZero() || c.Tenant == "" {
			t.Errorf("%+v: something is missing", c)
		}
		all = append(all, fmt.Sprintf("%s: %s > %s (%s)", c.Kind, c.From, c.To, c.Reason))
	}
	return all
}

func TestChanges(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var after []pgtenancy.Change
	fleet := db.migrated(t, notesFiles, func(c *pgtenancy.FleetConfig) {
		c.AfterChange = func(_ context.Context, c pgtenancy.Change) { after = append(after, c) }
	})
	ctx := bare(t)
	why := &pgtenancy.ChangeOpts{Reason: "why"}
	_, err := fleet.Provision(ctx, "acme", &pgtenancy.ProvisionOpts{Domains: []string{"B.example", "a.example"}, Reason: "signed up"})
	check(t, "Provision", err)
	for range 2 { // the second time there is nothing to do
		check(t, "Suspend", fleet.Suspend(ctx, "acme", why))
	}
	for range 2 {
		check(t, "Resume", fleet.Resume(ctx, "acme", nil))
	}
	for range 2 {
		check(t, "AddDomain", fleet.AddDomain(ctx, "acme", "C.Example.", why))
	}
	for range 2 {
		check(t, "RenameDomain", fleet.RenameDomain(ctx, "acme", "c.example", "Bücher.example", why))
	}
	for range 2 {
		check(t, "RemoveDomain", fleet.RemoveDomain(ctx, "acme", "A.example", why))
	}
	for range 2 {
		check(t, "SetAttributes", fleet.SetAttributes(ctx, "acme", map[string]string{"plan": "pro", "x": ""}, why))
	}
	check(t, "SetAttributes", fleet.SetAttributes(ctx, "acme", map[string]string{"x": "y"}, why))
	for range 2 {
		check(t, "RemoveAttributes", fleet.RemoveAttributes(ctx, "acme", []string{"x", "z"}, why))
	}
	if got := maps.Collect(lookup(t, fleet, "acme").Attributes()); !maps.Equal(got, map[string]string{"plan": "pro"}) {
		t.Errorf("attributes %v", got)
	}
	check(t, "Delete", fleet.Delete(ctx, "acme", why))
	check(t, "Undelete", fleet.Undelete(ctx, "acme", why))
	check(t, "Suspend", fleet.Suspend(ctx, "acme", nil))
	check(t, "Delete", fleet.Delete(ctx, "acme", why))
	_, err = fleet.Purge(ctx, "acme", &pgtenancy.PurgeOpts{Reason: "over", Force: true})
	check(t, "Purge", err)
	db.exec(t, "create schema old authorization "+db.owner)
	_, err = fleet.Adopt(ctx, "acme", "old", &pgtenancy.AdoptOpts{Reason: "from before", Domains: []string{"a.example"}})
	check(t, "Adopt", err)
	want := []string{
		"provision:  > active (signed up)", "add domain:  > a.example (signed up)", "add domain:  > b.example (signed up)",
		"suspend: active > suspended (why)", "resume: suspended > active ()",
		"add domain:  > c.example (why)", "rename domain: c.example > xn--bcher-kva.example (why)", "remove domain: a.example >  (why)",
		`attributes: {} > {"plan":"pro","x":""} (why)`, `attributes: {"plan":"pro","x":""} > {"plan":"pro","x":"y"} (why)`,
		`attributes: {"plan":"pro","x":"y"} > {"plan":"pro"} (why)`,
		"delete: active > deleted (why)", "undelete: deleted > active (why)", "suspend: active > suspended ()", "delete: suspended > deleted (why)",
		"purge: deleted > purging (over)", "purge: purging > purged (over)",
		"adopt:  > active (from before)", "add domain:  > a.example (from before)",
	}
	checkList(t, "history", history(t, fleet, "acme"), want...)
	checkList(t, "history of all", history(t, fleet, ""), want...)
	checkList(t, "history of nobody", history(t, fleet, "nobody"))
	var all []pgtenancy.Change
	for c, err := range fleet.Changes(ctx, "acme") {
		check(t, "Changes", err)
		checkEqual(t, "who", c.By, db.owner)
		all = append(all, c)
	}
	if diff := cmp.Diff(all, after, cmp.Comparer(func(a, b pgtenancy.Change) bool {
		same := a.At.Equal(b.At)
		a.At = b.At
		return same && a == b
	})); diff != "" {
		t.Errorf("history and what AfterChange was called with differ:\n%s", diff)
	}

	// More than a page.
	db.exec(t, "insert into pgtenancy.changes (tenant_id, kind, was, became, reason) select 'many', 'suspend', '', '', i::text from generate_series(1, 2000) i")
	many := history(t, fleet, "many")
	checkEqual(t, "a long history", len(many), 2000)
	checkEqual(t, "its end", many[len(many)-1], "suspend:  >  (2000)")
	for range fleet.Changes(ctx, "many") {
		break // holds no connection
	}
	checkInvalid(t, "a reason with NUL", fleet.Suspend(ctx, "acme", &pgtenancy.ChangeOpts{Reason: "\x00"}), "ChangeOpts.Reason")
}

// Whatever BeforeChange does, all of the change is there or nothing of it, and nothing else is lost.
func TestBeforeChange(t *testing.T) {
	t.Parallel()
	errVeto := errors.New("veto")
	type hook = func(context.Context, pgx.Tx, pgtenancy.Change) error
	tests := []struct {
		name string
		hook hook
		want func(error) bool
	}{
		{"refuses", func(context.Context, pgx.Tx, pgtenancy.Change) error { return errVeto }, func(err error) bool { return errors.Is(err, errVeto) }},
		{"panics", func(context.Context, pgx.Tx, pgtenancy.Change) error { panic(errVeto) }, func(err error) bool { return errors.Is(err, errVeto) }},
		{"has an error", func(ctx context.Context, tx pgx.Tx, _ pgtenancy.Change) error {
			_, err := tx.Exec(ctx, "select 1/0")
			return err
		}, func(err error) bool { return sqlState(err) == "22012" }},
		{"ignores an error", func(ctx context.Context, tx pgx.Tx, _ pgtenancy.Change) error { tx.Exec(ctx, "select 1/0"); return nil }, func(err error) bool { return sqlState(err) == "25P02" }},
		{"rolls back", func(ctx context.Context, tx pgx.Tx, _ pgtenancy.Change) error { return tx.Rollback(ctx) }, func(err error) bool { return errors.Is(err, pgx.ErrTxCommitRollback) }},
		{"commits and refuses", func(ctx context.Context, tx pgx.Tx, _ pgtenancy.Change) error {
			return errors.Join(tx.Commit(ctx), errVeto)
		}, func(err error) bool { return errors.Is(err, errVeto) }},
		{"allows", nil, func(err error) bool { return err == nil }},
	}
	db := newFleetDB(t)
	var mu sync.Mutex
	var now hook
	var after int
	fleet := db.migrated(t, with(notesFiles, "shared/001_log.sql", "create table log (what text, tenant text)"), ownerConns(1), func(c *pgtenancy.FleetConfig) {
		c.BeforeChange = func(ctx context.Context, tx pgx.Tx, c pgtenancy.Change) error {
			tenant, _ := pgtenancy.TenantFromContext(ctx)
			if tenant.ID() != c.Tenant || c.By == "" || c.At.IsZero() || c.Reason != "" {
				t.Errorf("called for %+v as %s", c, tenant)
			}
			if _, err := tx.Exec(ctx, "insert into log values ($1, $2)", c.Kind, c.Tenant); err != nil {
				return err
			}
			if now != nil {
				return now(ctx, tx, c)
			}
			return nil
		}
		c.AfterChange = func(context.Context, pgtenancy.Change) { mu.Lock(); after++; mu.Unlock() }
	})
	registry := `select t::text from pgtenancy.tenants t union all select d::text from pgtenancy.domains d union all select c::text from pgtenancy.changes c
		union all select l::text from public.log l union all select nspname from pg_namespace order by 1`
	run := calls(fleet)
	run["provision"] = func(ctx context.Context) error {
		_, err := fleet.Provision(ctx, "other", nil)
		return err
	}
	run["adopt"] = func(ctx context.Context) error { _, err := fleet.Adopt(ctx, "old", "old", nil); return err }
	reach := map[string][]string{"resume": {"suspend"}, "undelete": {"delete"}, "purge": {"delete"}}
	for name, call := range run {
		if _, err := fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{Domains: []string{"old.example"}, Attributes: map[string]string{"plan": "x"}}); err != nil {
			t.Fatal(err)
		}
		db.exec(t, "create schema old authorization "+db.owner)
		for _, r := range reach[name] {
			check(t, r, run[r](bare(t)))
		}
		for _, tt := range tests {
			what := name + ", which " + tt.name
			now = tt.hook
			before, heard := db.texts(t, registry), after
			err := func() (err error) {
				defer func() {
					if r := recover(); r != nil {
						err, _ = r.(error)
					}
				}()
				return call(bare(t))
			}()
			if !tt.want(err) {
				t.Errorf("%s: %v", what, err)
			}
			if err != nil {
				checkList(t, what, db.texts(t, registry), before...)
				checkEqual(t, what+": calls of AfterChange", after, heard)
			} else if after == heard {
				t.Errorf("%s: AfterChange was not called", what)
			}
		}
		now = nil
		db.exec(t, `delete from pgtenancy.tenants; delete from pgtenancy.migrations where tenant_id <> '';
			do $$ declare s text; begin for s in select nspname from pg_namespace where nspname like 'tenant%' or nspname in ('old') or nspname like 'deleted:%' loop execute format('drop schema %I cascade', s); end loop; end $$`)
	}
	checkEqual(t, "rows of a purge", db.count(t, "select count(*) from log where what = 'purge'"), 2)
}

func TestDomains(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	ctx := bare(t)
	for _, id := range []string{"acme", "globex"} {
		_, err := fleet.Provision(ctx, id, &pgtenancy.ProvisionOpts{Domains: []string{id + ".example"}})
		check(t, "Provision", err)
	}
	exists, invalid := pgtenancy.ErrTenantExists, errors.New("an *InvalidError")
	tests := []struct {
		name string
		err  error
		want error
	}{
		{"a domain of another's", fleet.AddDomain(ctx, "acme", "GLOBEX.example.", nil), exists},
		{"to a domain of another's", fleet.RenameDomain(ctx, "acme", "acme.example", "globex.example", nil), exists},
		{"from a domain of another's", fleet.RenameDomain(ctx, "acme", "globex.example", "new.example", nil), invalid},
		{"from a domain of nobody's", fleet.RenameDomain(ctx, "acme", "nobody.example", "new.example", nil), invalid},
		{"to the same", fleet.RenameDomain(ctx, "acme", "acme.example", "Acme.example", nil), nil},
		{"removing a domain of another's", fleet.RemoveDomain(ctx, "acme", "globex.example", nil), nil},
		{"removing a domain of nobody's", fleet.RemoveDomain(ctx, "acme", "nobody.example", nil), nil},
		{"no domain", fleet.AddDomain(ctx, "acme", "a b", nil), invalid},
		{"removing no domain", fleet.RemoveDomain(ctx, "acme", "", nil), invalid},
		{"from no domain", fleet.RenameDomain(ctx, "acme", "127.0.0.1", "new.example", nil), invalid},
		{"to no domain", fleet.RenameDomain(ctx, "acme", "acme.example", "/", nil), invalid},
	}
	for _, tt := range tests {
		if errors.As(tt.err, new(*pgtenancy.InvalidError)) {
			tt.err = invalid
		}
		checkIs(t, tt.name, tt.err, tt.want)
	}
	checkList(t, "domains", db.texts(t, "select domain || ' ' || tenant_id from pgtenancy.domains order by 1"), "acme.example acme", "globex.example globex")

	// At once for whoever looked it up before.
	expect := func(domain, id string) {
		t.Helper()
		got, err := fleet.Lookup(ctx, pgtenancy.ByDomain(domain))
		if got.ID() != id || (err == nil) == errors.Is(err, pgtenancy.ErrTenantNotFound) {
			t.Errorf("%s leads to %q, want %q: %v", domain, got.ID(), id, err)
		}
	}
	expect("acme.example", "acme")
	expect("shop.example", "")
	check(t, "RenameDomain", fleet.RenameDomain(ctx, "acme", "acme.example", "shop.example", nil))
	expect("acme.example", "")
	expect("shop.example", "acme")
	check(t, "AddDomain", fleet.AddDomain(ctx, "acme", "acme.example", nil))
	expect("acme.example", "acme")
	checkInvalid(t, "to one that it has", fleet.RenameDomain(ctx, "acme", "shop.example", "acme.example", nil), "Domain")
	check(t, "RemoveDomain", fleet.RemoveDomain(ctx, "acme", "shop.example", nil))
	expect("shop.example", "")

	// Of a deleted tenant they lead nowhere, and are nobody else's unless they are taken away.
	check(t, "AddDomain", fleet.AddDomain(ctx, "acme", "shop.example", nil))
	check(t, "Delete", fleet.Delete(ctx, "acme", nil))
	expect("acme.example", "")
	checkIs(t, "a domain of a deleted tenant", fleet.AddDomain(ctx, "globex", "acme.example", nil), exists)
	check(t, "RemoveDomain", fleet.RemoveDomain(ctx, "acme", "acme.example", nil))
	check(t, "AddDomain", fleet.AddDomain(ctx, "globex", "acme.example", nil))
	check(t, "Undelete", fleet.Undelete(ctx, "acme", nil))
	expect("acme.example", "globex")
	expect("shop.example", "acme")
}

// Many want the same domains, and those of each other: one has each at the end, and nobody waits in vain.
func TestDomainsConcurrently(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles, ownerConns(8))
	db.makeTenants(t, 8)
	var wg sync.WaitGroup
	for i := range 8 {
		id, mine, next := fmt.Sprintf("t%05d", i+1), fmt.Sprintf("d%d.example", i), fmt.Sprintf("d%d.example", (i+1)%8)
		wg.Go(func() {
			for range 5 {
				for _, err := range []error{
					fleet.AddDomain(bare(t), id, "all.example", nil), fleet.AddDomain(bare(t), id, mine, nil),
					fleet.RenameDomain(bare(t), id, mine, next, nil), fleet.RemoveDomain(bare(t), id, next, nil),
				} {
					if err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) && !errors.As(err, new(*pgtenancy.InvalidError)) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	checkEqual(t, "owners of one domain", db.count(t, "select count(*) from pgtenancy.domains where domain = 'all.example'"), 1)
	checkEqual(t, "domains beyond those that the history tells of", db.count(t, `select count(*) from pgtenancy.domains d where not exists (
		select from pgtenancy.changes c where c.tenant_id = d.tenant_id and c.became = d.domain)`), 0)
}

// All callers with one ID get the one tenant.
func TestProvisionIfNotExists(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles, ownerConns(8))
	opts := &pgtenancy.ProvisionOpts{
		IfNotExists: true, Domains: []string{"acme.example"}, Attributes: map[string]string{"plan": "pro"},
		Seed: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into notes (body) values ('seed')")
			return err
		},
	}
	got := make([]pgtenancy.Tenant, 50)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var err error
			got[i], err = fleet.Provision(bare(t), "acme", opts)
			check(t, "Provision", err)
		})
	}
	wg.Wait()
	for _, tenant := range got {
		checkEqual(t, "tenant", tenant, lookup(t, fleet, "acme"))
	}
	checkEqual(t, "seeds", db.count(t, "select count(*) from tenant_acme.notes"), 1)
	checkList(t, "history", history(t, fleet, "acme"), "provision:  > active ()", "add domain:  > acme.example ()")
	_, err := fleet.Provision(bare(t), "globex", opts)
	checkIs(t, "a domain of another's", err, pgtenancy.ErrTenantExists)
	check(t, "Suspend", fleet.Suspend(bare(t), "acme", nil))
	_, err = fleet.Provision(bare(t), "acme", opts)
	checkIs(t, "when it is suspended", err, pgtenancy.ErrTenantExists)
	check(t, "Delete", fleet.Delete(bare(t), "acme", nil))
	_, err = fleet.Provision(bare(t), "acme", opts)
	checkIs(t, "when it is deleted", err, pgtenancy.ErrTenantExists)
}

// Another process that remembers the tenant refuses it as soon as it hears of the change, and so it does handles of it.
func TestSuspendElsewhere(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newFleetDB(t)
	here := db.migrated(t, notesFiles)
	acme := provision(t, here, "acme")
	there := db.open(t, notesFiles)
	for _, fleet := range []*pgtenancy.Fleet{here, there} {
		lookup(t, fleet, "acme")
		await(t, "both to listen", func() bool { return fleet.DirectoryStat().Listening }) // then they forget all
		lookup(t, fleet, "acme")
	}
	for i, step := range []struct {
		do   func(context.Context, string, *pgtenancy.ChangeOpts) error
		want error
	}{{here.Suspend, pgtenancy.ErrTenantSuspended}, {here.Resume, nil}, {here.Delete, pgtenancy.ErrTenantNotFound}, {here.Undelete, nil}} {
		check(t, "change", step.do(bare(t), "acme", nil))
		_, err := here.Pool().Exec(as(t, acme), "select from notes")
		checkIs(t, fmt.Sprint("at once, the handle here ", i), err, step.want)
		_, err = here.Lookup(bare(t), pgtenancy.ByID("acme"))
		checkIs(t, fmt.Sprint("Lookup here ", i), err, step.want)
		for _, fleet := range []*pgtenancy.Fleet{here, there} {
			await(t, fmt.Sprint("the handle's end or use ", i), func() bool {
				_, err := fleet.Pool().Exec(as(t, acme), "select from notes")
				return errors.Is(err, step.want)
			})
			_, err = fleet.Lookup(bare(t), pgtenancy.ByID("acme"))
			checkIs(t, fmt.Sprint("Lookup ", i), err, step.want)
		}
	}
}

// Who is at work on a tenant is waited for, and not for ever.
func TestChangeWaits(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	started, end := make(chan struct{}, 1), make(chan struct{})
	fleet := db.migrated(t, notesFiles)
	provision(t, fleet, "acme")
	next := db.open(t, notesFiles, func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_go", Up: func(context.Context, pgx.Tx) error { started <- struct{}{}; <-end; return nil }}}
	})
	var wg sync.WaitGroup
	wg.Go(func() { _, err := next.Migrate(bare(t), nil); check(t, "Migrate", err) })
	<-started
	for name, do := range map[string]func(context.Context, string, *pgtenancy.ChangeOpts) error{"Suspend": fleet.Suspend, "Delete": fleet.Delete} {
		checkIs(t, name, do(bare(t), "acme", brief), pgtenancy.ErrTenantInUse)
	}
	checkEqual(t, "state", lookup(t, fleet, "acme").State(), pgtenancy.Active)
	close(end)
	wg.Wait()
	check(t, "Delete", fleet.Delete(bare(t), "acme", nil))

	// Nobody migrates a deleted tenant, which goes on where it was when it is back.
	third := db.open(t, with(notesFiles, "tenant/003_c.sql", "create table c ()"), func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_go", Up: func(context.Context, pgx.Tx) error { return nil }}}
	})
	checkEqual(t, "tenants to migrate", migrate(t, third).Tenants, 0)
	check(t, "Undelete", fleet.Undelete(bare(t), "acme", nil))
	checkEqual(t, "tenants to migrate", migrate(t, third).Tenants, 1)
	checkEqual(t, "version", lookup(t, third, "acme").Version(), 3)
}
