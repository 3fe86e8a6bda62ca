//! Support tickets made from phrases: a category to find, a product to repeat, a fixed format. The order number is
//! there to be passed over: copying digits is beyond a model of four million parameters.

use std::collections::HashSet;

/// Rows of the committed data set.
pub const ROWS: usize = 304;
/// Seed of the committed data set.
pub const SEED: u64 = 7;

/// A kind of ticket. `{p}` stands for the product and `{n}` for the order number.
struct Intent {
    category: &'static str,
    tickets: [&'static str; 10],
    reply: &'static str,
}

const INTENTS: [Intent; 8] = [
    Intent {
        category: "Delivery",
        tickets: [
            "Where is my {p}? The order number is {n}.",
            "Order {n} is late. When will the {p} get here?",
            "I am still waiting for the {p} from order {n}.",
            "My {p} has not arrived yet, order {n}.",
            "When will order {n} arrive? It is a {p}.",
            "It has been two weeks and the {p} is not here. Order {n}.",
            "Can you check the delivery of order {n}? I need the {p}.",
            "The {p} I ordered did not come. Number {n}.",
            "How long until my {p} arrives? Order {n}.",
            "Has order {n} with the {p} been sent?",
        ],
        reply: "Sorry for the wait. Your {p} will arrive in two days.",
    },
    Intent {
        category: "Refund",
        tickets: [
            "I want my money back for the {p}. Order {n}.",
            "Please refund order {n}, the {p}.",
            "When do I get the refund for the {p}? Order {n}.",
            "I sent the {p} back and want my money. Order {n}.",
            "Can I get a refund for order {n}? It was a {p}.",
            "Give me my money back for order {n}, the {p}.",
            "My refund for the {p} is not here. Order {n}.",
            "How do I get my money back for the {p} in order {n}?",
            "I would like a refund for the {p}, number {n}.",
            "The refund of order {n} is missing. It was a {p}.",
        ],
        reply: "We will pay you back for the {p} in five days.",
    },
    Intent {
        category: "Cancel",
        tickets: [
            "Please cancel order {n}. I do not need the {p}.",
            "I want to cancel the {p}, order {n}.",
            "Stop order {n}, I changed my mind about the {p}.",
            "Can I still cancel order {n} with the {p}?",
            "I do not want the {p} any more. Cancel order {n}.",
            "Do not send the {p}. Please cancel number {n}.",
            "How can I cancel my {p}? The order is {n}.",
            "I ordered the {p} by mistake, cancel order {n}.",
            "Cancel my order {n} for the {p} please.",
            "I need to cancel order {n} today. It is a {p}.",
        ],
        reply: "Done. The {p} is cancelled and costs you nothing.",
    },
    Intent {
        category: "Broken",
        tickets: [
            "The {p} from order {n} is broken.",
            "My {p} does not work. Order {n}.",
            "The {p} arrived damaged, order {n}.",
            "Order {n}: the {p} will not turn on.",
            "I got a broken {p}. The order number is {n}.",
            "My new {p} stopped working. Order {n}.",
            "There is a crack in the {p} from order {n}.",
            "The {p} in order {n} came in pieces.",
            "Something is wrong with my {p}, it is dead. Order {n}.",
            "The {p} broke on the first day. Order {n}.",
        ],
        reply: "Sorry about that. We will send a new {p} today.",
    },
    Intent {
        category: "Wrong item",
        tickets: [
            "I got the wrong thing. Order {n} should be a {p}.",
            "Order {n} has the wrong color of {p}.",
            "You sent the wrong {p} in order {n}.",
            "This is not the {p} I ordered. Order {n}.",
            "I ordered a {p} and got something else. Order {n}.",
            "The {p} in order {n} is the wrong size.",
            "Wrong {p} in the box, number {n}.",
            "My order {n} is not right. I asked for a {p}.",
            "Someone sent me the wrong item, not a {p}. Order {n}.",
            "There was a different thing in order {n}, not my {p}.",
        ],
        reply: "Sorry for the mix up. Keep it, the right {p} is on its way.",
    },
    Intent {
        category: "Payment",
        tickets: [
            "I paid twice for the {p}. Order {n}.",
            "My card was charged two times for order {n}, the {p}.",
            "The payment for order {n} did not go through. It is a {p}.",
            "Why was I charged again for the {p}? Order {n}.",
            "My card does not work for order {n} with the {p}.",
            "You took too much money for the {p} in order {n}.",
            "I can not pay for the {p}. The order is {n}.",
            "The price on my card for order {n} is wrong. It was a {p}.",
            "Can I pay for the {p} by card? Order {n}.",
            "I see two payments for order {n}, the {p}.",
        ],
        reply: "We have checked it. You pay for the {p} only once.",
    },
    Intent {
        category: "Address",
        tickets: [
            "I moved. Please send the {p} to my new address. Order {n}.",
            "Can I change the address of order {n}? It is a {p}.",
            "The address for the {p} is wrong, order {n}.",
            "Send order {n} with the {p} to my office address.",
            "I gave the wrong street for order {n}, the {p}.",
            "Please change where the {p} goes. Order {n}.",
            "My {p} is going to my old address. Order {n}.",
            "I need order {n} sent to another address. It is a {p}.",
            "How do I change the address for my {p}, order {n}?",
            "The street number for order {n} is wrong. It is a {p}.",
        ],
        reply: "No problem. Send us the new address and the {p} will go there.",
    },
    Intent {
        category: "Bill",
        tickets: [
            "I need the bill for the {p}, order {n}.",
            "Please email me the bill of order {n}, the {p}.",
            "Where can I find the bill for my {p}? Order {n}.",
            "There was no bill in the box with the {p}. Order {n}.",
            "Can you send the receipt for order {n}? It was a {p}.",
            "I lost the receipt of the {p} from order {n}.",
            "My name is wrong on the bill for order {n}, the {p}.",
            "I want a copy of the bill for the {p} in order {n}.",
            "The receipt for my {p} is missing. Order {n}.",
            "Could I get a receipt for order {n}, the {p}?",
        ],
        reply: "The bill for the {p} is in your email now.",
    },
];

const PRODUCTS: [&str; 16] = [
    "phone", "table", "chair", "watch", "book", "bag", "light", "camera", "game", "bed", "speaker", "coat",
    "bike", "radio", "clock", "dress",
];

const OPENINGS: [&str; 6] = ["", "", "Hi. ", "Hello. ", "Please help. ", "Hi there. "];

/// `rows` tickets as JSON Lines with `prompt` and `completion`; the same for the same seed, no prompt twice.
pub fn tickets(rows: usize, seed: u64) -> String {
    let mut random = SplitMix(seed);
    let mut seen = HashSet::new();
    let mut lines = Vec::with_capacity(rows);
    while lines.len() < rows {
        let intent = &INTENTS[lines.len() % INTENTS.len()];
        let product = random.pick(&PRODUCTS);
        let number = 100 + random.below(900);
        let fill = |text: &str| text.replace("{p}", product).replace("{n}", &number.to_string());
        let ticket = fill(random.pick(&intent.tickets));
        let opening = random.pick(&OPENINGS);
        let prompt = format!("{opening}{ticket}");
        if !seen.insert(ticket) {
            continue;
        }
        let completion =
            format!("Category: {}\nProduct: {product}\nReply: {}", intent.category, fill(intent.reply));
        // The texts hold nothing that JSON escapes but the line breaks.
        let completion = completion.replace('\n', "\\n");
        lines.push(format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n"));
    }
    for i in (1..lines.len()).rev() {
        lines.swap(i, random.below(i as u64 + 1) as usize);
    }
    lines.concat()
}

/// `SplitMix64` (Steele, Lea and Flood, 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }
}
