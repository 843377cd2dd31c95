-- Who buys, and what became of it.

-- pgtenancy:allow type-in-tenant a tenant may have a state of its own
create type order_status as enum ('open', 'paid', 'shipped', 'cancelled');

create table customers (
    id bigint generated always as identity primary key,
    name text not null,
    email text not null unique
);

create table addresses (
    id bigint generated always as identity primary key,
    customer_id bigint not null references customers (id) on delete cascade,
    street text not null,
    city text not null,
    country char(2) not null
);
create index on addresses (customer_id);

create table orders (
    id bigint generated always as identity primary key,
    customer_id bigint not null references customers (id),
    address_id bigint references addresses (id),
    status order_status not null default 'open',
    created_at timestamptz not null default now()
);
create index on orders (customer_id);
create index on orders (status) where status = 'open';

create table order_items (
    order_id bigint not null references orders (id) on delete cascade,
    line int not null,
    product_id bigint not null references products (id),
    quantity int not null check (quantity > 0),
    price_cents int not null,
    primary key (order_id, line)
);
create index on order_items (product_id);

create table payments (
    id bigint generated always as identity primary key,
    order_id bigint not null references orders (id),
    amount_cents int not null check (amount_cents > 0),
    paid_at timestamptz not null default now()
);
create index on payments (order_id);

create table shipments (
    id bigint generated always as identity primary key,
    order_id bigint not null references orders (id),
    warehouse_id bigint not null references warehouses (id),
    shipped_at timestamptz
);
create index on shipments (order_id);
