//! Writes the support tickets of the quick start: `cargo run -p tunesmith-data --example make_tickets > tests/fixtures/tickets.jsonl`.

#[allow(unreachable_pub)]
mod tickets;

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(tickets::tickets(tickets::ROWS, tickets::SEED).as_bytes())
}
