-- Writers go on meanwhile. It runs in no transaction; a crash in the middle is found and finished by the next Migrate.
create index concurrently orders_customer_id on orders (customer_id);
