create type order_status as enum ('open', 'paid');

create table customers (
    id bigint generated always as identity primary key,
    email text not null unique,
    name text not null
);

create table orders (
    id bigint generated always as identity primary key,
    customer_id bigint not null references customers (id) on delete cascade,
    item text not null,
    quantity int not null check (quantity > 0),
    status order_status not null default 'open',
    options jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index on orders (customer_id);
