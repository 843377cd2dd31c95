-- What a shop sells. Unqualified names: each tenant has these tables in a schema of its own.

create table categories (
    id bigint generated always as identity primary key,
    parent_id bigint references categories (id),
    name text not null unique
);

create table products (
    id bigint generated always as identity primary key,
    sku text not null unique,
    name text not null,
    price_cents int not null check (price_cents >= 0),
    created_at timestamptz not null default now()
);

create table product_categories (
    product_id bigint not null references products (id) on delete cascade,
    category_id bigint not null references categories (id) on delete cascade,
    primary key (product_id, category_id)
);
create index on product_categories (category_id);

create table warehouses (
    id bigint generated always as identity primary key,
    name text not null unique
);

create table stock (
    product_id bigint not null references products (id),
    warehouse_id bigint not null references warehouses (id),
    quantity int not null check (quantity >= 0),
    primary key (product_id, warehouse_id)
);
create index on stock (warehouse_id);
