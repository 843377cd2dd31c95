package wire

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// typeSpec is what is known of a type that a user created. It is immutable, and so may be kept for all connections; the
// codecs made of it may not.
type typeSpec struct {
	name   string // with its schema, since tenants have types of one name
	kind   string // as pg_type.typtype: b, c, d, e, r, m
	array  bool
	of     uint32 // the element of an array or range, the base of a domain, the range of a multirange
	text   bool   // a base type that is a string to PostgreSQL, as citext
	fields []typeField
}

type typeField struct {
	name string
	oid  uint32
}

// loadTypesSQL returns the types asked for and all that they are made of. OIDs below 16384 are PostgreSQL's own.
const loadTypesSQL = `with recursive wanted (oid) as (
	select unnest($1::pg_catalog.oid[])
	union
	select part.oid
	from wanted
	join pg_catalog.pg_type t on t.oid = wanted.oid
	cross join lateral (
		select t.typelem where t.typcategory = 'A'
		union all select t.typbasetype where t.typtype = 'd'
		union all select a.atttypid from pg_catalog.pg_attribute a
			where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
		union all select r.rngsubtype from pg_catalog.pg_range r where t.typtype = 'r' and r.rngtypid = t.oid
		union all select r.rngtypid from pg_catalog.pg_range r where t.typtype = 'm' and r.rngmultitypid = t.oid
	) part (oid)
	where part.oid >= 16384
)
select t.oid, n.nspname, t.typname, t.typtype, t.typcategory,
	case when t.typcategory = 'A' then t.typelem
		when t.typtype = 'd' then t.typbasetype
		when t.typtype = 'r' then (select r.rngsubtype from pg_catalog.pg_range r where r.rngtypid = t.oid)
		when t.typtype = 'm' then (select r.rngtypid from pg_catalog.pg_range r where r.rngmultitypid = t.oid)
		else 0 end,
	a.attname, a.atttypid
from wanted
join pg_catalog.pg_type t on t.oid = wanted.oid
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
left join pg_catalog.pg_attribute a on t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
order by t.oid, a.attnum`

// learn makes the connection able to encode and decode the types that users created and that the description names. The
// catalog is asked once in the process, with one round trip for all types that are not known yet.
func (c *Conn) learn(ctx context.Context, sd *pgconn.StatementDescription) error {
	var unknown []uint32
	note := func(oid uint32) {
		if oid < firstUserOID || c.learned[oid] {
			return
		}
		if _, ok := c.types.TypeForOID(oid); !ok || slices.Contains(c.changed, oid) {
			unknown = append(unknown, oid)
		}
	}
	for _, oid := range sd.ParamOIDs {
		note(oid)
	}
	for i := range sd.Fields {
		note(sd.Fields[i].DataTypeOID)
	}
	if len(unknown) == 0 {
		return nil
	}
	if c.learned == nil {
		c.learned = make(map[uint32]bool)
	}
	for _, oid := range unknown {
		if !c.shared.knowsType(oid) {
			if err := c.loadTypes(ctx, unknown); err != nil {
				return fmt.Errorf("load types: %w", err)
			}
			break
		}
	}
	for _, oid := range unknown {
		c.register(oid)
		c.learned[oid] = true // also where nothing could be made of it: pgx then treats it as text
	}
	c.changed = nil
	return nil
}

// knowsType reports whether the type and all that it is made of are known.
func (sh *Shared) knowsType(oid uint32) bool {
	if oid < firstUserOID {
		return true
	}
	spec := sh.typeSpec(oid)
	if spec == nil {
		return false
	}
	for _, f := range spec.fields {
		if !sh.knowsType(f.oid) {
			return false
		}
	}
	return sh.knowsType(spec.of)
}

func (sh *Shared) typeSpec(oid uint32) *typeSpec {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	spec, _ := sh.types.Get(oid)
	return spec
}

// loadTypes reads types from the catalog.
func (c *Conn) loadTypes(ctx context.Context, oids []uint32) error {
	var list strings.Builder
	for i, oid := range oids {
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteString(strconv.FormatUint(uint64(oid), 10))
	}
	result := c.pg.ExecParams(ctx, loadTypesSQL, [][]byte{[]byte("{" + list.String() + "}")}, nil, nil, nil).Read()
	if result.Err != nil {
		return result.Err
	}
	specs := make(map[uint32]*typeSpec)
	for _, oid := range oids {
		specs[oid] = &typeSpec{} // dropped meanwhile, where no row comes
	}
	for _, row := range result.Rows {
		oid, of := parseOID(row[0]), parseOID(row[5])
		spec := specs[oid]
		if spec == nil || spec.kind == "" {
			spec = &typeSpec{
				name: ident.QuoteAll(string(row[1]), string(row[2])), kind: string(row[3]),
				array: string(row[4]) == "A", of: of, text: string(row[4]) == "S",
			}
			specs[oid] = spec
		}
		if row[6] != nil {
			spec.fields = append(spec.fields, typeField{string(row[6]), parseOID(row[7])})
		}
	}
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	for oid, spec := range specs {
		c.shared.types.Put(oid, spec)
	}
	return nil
}

func parseOID(b []byte) uint32 {
	n, _ := strconv.ParseUint(string(b), 10, 32) // it is PostgreSQL's
	return uint32(n)
}

// register makes a codec of the connection's own for a type and for what it is made of. It returns nil where it does not
// know how.
func (c *Conn) register(oid uint32) *pgtype.Type {
	if t, ok := c.types.TypeForOID(oid); ok && !slices.Contains(c.changed, oid) {
		return t
	}
	spec := c.shared.typeSpec(oid)
	if oid < firstUserOID || spec == nil {
		return nil
	}
	var codec pgtype.Codec
	switch {
	case spec.kind == "e":
		codec = &pgtype.EnumCodec{}
	case spec.kind == "c":
		fields := make([]pgtype.CompositeCodecField, len(spec.fields))
		for i, f := range spec.fields {
			t := c.register(f.oid)
			if t == nil {
				return nil
			}
			fields[i] = pgtype.CompositeCodecField{Name: f.name, Type: t}
		}
		codec = &compositeCodec{
			CompositeCodec: &pgtype.CompositeCodec{Fields: fields},
			changed: func() {
				c.shared.mu.Lock()
				c.shared.types.Delete(oid)
				c.shared.mu.Unlock()
				delete(c.learned, oid)
				c.changed = append(c.changed, oid)
			},
		}
	case spec.of != 0:
		of := c.register(spec.of)
		switch {
		case of == nil:
			return nil
		case spec.kind == "d":
			codec = of.Codec
		case spec.kind == "r":
			codec = &pgtype.RangeCodec{ElementType: of}
		case spec.kind == "m":
			codec = &pgtype.MultirangeCodec{ElementType: of}
		case spec.array:
			codec = &pgtype.ArrayCodec{ElementType: of}
		default:
			return nil
		}
	case spec.text:
		codec = pgtype.TextCodec{}
	default:
		return nil
	}
	t := &pgtype.Type{Name: spec.name, OID: oid, Codec: codec}
	c.types.RegisterType(t)
	return t
}

// compositeCodec refuses values whose fields are not those of the type that it was made for. A type or table may get other
// fields and keep its OID; decoding would then take one field for another, or its bytes for another type's.
type compositeCodec struct {
	*pgtype.CompositeCodec
	changed func() // has the type loaded anew, when it is met next
}

func (cc *compositeCodec) check(format int16, src []byte) error {
	if src == nil || format != pgtype.BinaryFormatCode || cc.describes(src) {
		return nil
	}
	cc.changed()
	return errors.New("the composite type has changed since it was loaded: read it again")
}

// describes reports whether a value in binary, which has the number and the types of its fields in it, is of the type.
func (cc *compositeCodec) describes(src []byte) bool {
	if len(src) < 4 || int(binary.BigEndian.Uint32(src)) != len(cc.Fields) {
		return false
	}
	src = src[4:]
	for _, f := range cc.Fields {
		if len(src) < 8 || binary.BigEndian.Uint32(src) != f.Type.OID {
			return false
		}
		size := max(int(int32(binary.BigEndian.Uint32(src[4:]))), 0) // -1 is NULL
		if len(src) < 8+size {
			return false
		}
		src = src[8+size:]
	}
	return len(src) == 0
}

// PlanScan as in pgtype.Codec.
func (cc *compositeCodec) PlanScan(m *pgtype.Map, oid uint32, format int16, target any) pgtype.ScanPlan {
	plan := cc.CompositeCodec.PlanScan(m, oid, format, target)
	if plan == nil {
		return nil
	}
	return &compositeScan{cc, format, plan}
}

type compositeScan struct {
	cc     *compositeCodec
	format int16
	plan   pgtype.ScanPlan
}

func (s *compositeScan) Scan(src []byte, target any) error {
	if err := s.cc.check(s.format, src); err != nil {
		return err
	}
	return s.plan.Scan(src, target)
}

// DecodeValue as in pgtype.Codec.
func (cc *compositeCodec) DecodeValue(m *pgtype.Map, oid uint32, format int16, src []byte) (any, error) {
	if err := cc.check(format, src); err != nil {
		return nil, err
	}
	return cc.CompositeCodec.DecodeValue(m, oid, format, src)
}

// DecodeDatabaseSQLValue as in pgtype.Codec.
func (cc *compositeCodec) DecodeDatabaseSQLValue(m *pgtype.Map, oid uint32, format int16, src []byte) (driver.Value, error) {
	if err := cc.check(format, src); err != nil {
		return nil, err
	}
	return cc.CompositeCodec.DecodeDatabaseSQLValue(m, oid, format, src)
}
