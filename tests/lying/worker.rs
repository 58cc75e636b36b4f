//! What a raw worker does: each request's payload tells which lie to tell, with numbers behind the word.

use std::time::Duration;

use handbell::ExecutionClass;
use handbell::testing::{self, Envelope, RawRequest, RawWorker, flags, kind, status};

use crate::common::Numbers;

pub fn lie(raw: &mut RawWorker) {
    let mut kept: Vec<RawRequest> = Vec::new();
    while let Some(request) = raw.receive() {
        raw.begin(&request);
        let text = String::from_utf8_lossy(&request.payload).into_owned();
        let mut words = text.split(' ');
        let what = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let number = |i: usize| numbers.get(i).copied().unwrap_or(0);
        let honest = request.answer(0);
        let going = match what {
            "keep" => {
                kept.push(request);
                true
            }
            "answer_kept" => {
                let all = kept.drain(..).all(|kept| raw.reply(&kept, b"kept"));
                all && raw.reply(&request, b"own")
            }
            "answer_and_exit" => {
                for kept in kept.drain(..) {
                    raw.reply(&kept, b"kept");
                }
                raw.reply(&request, b"own");
                std::process::exit(4);
            }
            "commit_word" => {
                raw.poker().poke(raw.commit_word_at(0), number(0));
                true
            }
            "kind" => raw.send(Envelope { kind: number(0) as u8, ..honest }, b""),
            "status" => raw.send(Envelope { status: number(0) as u8, ..honest }, b""),
            "flags" => raw.send(Envelope { flags: number(0) as u16, ..honest }, b""),
            "payload" => {
                let (payload_at, payload_len) = (number(0) as u32, number(1) as u32);
                raw.send(Envelope { payload_at, payload_len, ..honest }, b"")
            }
            "slot" => {
                let ticket = testing::ticket(number(0) as u32, honest.ticket >> 24);
                raw.send(Envelope { ticket, ..honest }, b"")
            }
            "generation" => {
                let ticket = testing::ticket(0, (honest.ticket >> 24) + number(0));
                raw.send(Envelope { ticket, ..honest }, b"")
            }
            "error" => {
                let payload = &request.payload[6..];
                let envelope =
                    Envelope { status: status::ERROR, payload_len: payload.len() as u32, ..honest };
                raw.send(envelope, payload)
            }
            "error_class" => {
                let class = [ExecutionClass::NodeError, ExecutionClass::Misrouted][number(0) as usize];
                let payload = testing::error_payload(class, 3, "text");
                raw.send(
                    Envelope { status: status::ERROR, payload_len: payload.len() as u32, ..honest },
                    &payload,
                )
            }
            // The text of a node's error, of so many bytes of this value.
            "error_text" => {
                let mut payload = testing::error_payload(ExecutionClass::NodeError, 3, "");
                payload[2..4].copy_from_slice(&(number(0) as u16).to_le_bytes());
                payload.extend(std::iter::repeat_n(number(1) as u8, number(0) as usize));
                let payload_len = payload.len() as u32;
                raw.send(Envelope { status: status::ERROR, payload_len, ..honest }, &payload)
            }
            "error_block" => {
                raw.send(Envelope { status: status::ERROR, payload_at: 1, payload_len: 8, ..honest }, b"")
            }
            "foreign" => foreign(raw, honest) && raw.reply(&request, b"own"),
            "foreign_id_last" => {
                let mut trace_id = honest.trace_id;
                trace_id[number(0) as usize] ^= 1;
                raw.send(Envelope { trace_id, ..honest }, b"")
            }
            "foreign_last" => raw.send(Envelope { reply_to: !honest.reply_to, ..honest }, b""),
            "kept_ticket" => {
                // Requests end in order: behind one that is kept this one is kept too.
                let ticket = kept.last().unwrap_or(&request).envelope.ticket.to_string();
                let last = if kept.is_empty() { flags::LAST } else { 0 };
                let envelope = Envelope { flags: last, ..request.answer(ticket.len()) };
                if last == 0 {
                    kept.push(request);
                }
                raw.send(envelope, ticket.as_bytes())
            }
            // Terminals of this ticket, without LAST and with it.
            "as" => {
                let all = [0, flags::LAST]
                    .into_iter()
                    .all(|flags| raw.send(Envelope { ticket: number(0), flags, ..honest }, b""));
                all && raw.reply(&request, b"own")
            }
            // The same, with LAST alone.
            "as_last" => {
                raw.send(Envelope { ticket: number(0), ..honest }, b"") && raw.reply(&request, b"own")
            }
            "behind_last" => {
                let sent = raw.reply(&request, b"own") && raw.send(Envelope { flags: 0, ..honest }, b"");
                sent && raw.send(honest, b"") && raw.send(Envelope { kind: kind::DONE, ..honest }, b"")
            }
            "thrice" => {
                let first = Envelope { flags: 0, payload_len: 1, ..honest };
                raw.send(first, b"1")
                    && raw.send(first, b"2")
                    && raw.send(Envelope { flags: flags::LAST, ..first }, b"3")
            }
            "twice_last" => raw.reply(&request, b"first") && raw.reply(&request, b"second"),
            "no_last" => raw.send(Envelope { flags: 0, payload_len: 4, ..honest }, b"word"),
            "output" => {
                let (source, target) = (number(0) as u16, number(1) as u16);
                raw.send(Envelope { kind: kind::OUTPUT, source, target, flags: 0, ..honest }, b"")
            }
            "done" => raw.send(Envelope { kind: kind::DONE, ..honest }, b""),
            "own_words" => {
                // Every control word of the segment, long before the slots begin.
                (128..640).step_by(8).for_each(|at| raw.poker().poke(at, number(0)));
                raw.reply(&request, b"own")
            }
            "garbage" => {
                garbage(raw, number(0));
                raw.reply(&request, b"own")
            }
            _ => raw.reply(&request, &request.payload),
        };
        if !going {
            return;
        }
    }
}

/// Four answers that are each somebody else's in one field.
fn foreign(raw: &mut RawWorker, honest: Envelope) -> bool {
    let honest = Envelope { flags: 0, ..honest };
    [
        Envelope { trace_id: [honest.trace_id[0], !honest.trace_id[1]], ..honest },
        Envelope { reply_to: honest.reply_to + 1, ..honest },
        Envelope { run: !honest.run, ..honest },
        Envelope { scenario: !honest.scenario, ..honest },
    ]
    .into_iter()
    .all(|envelope| raw.send(envelope, b""))
}

/// Writes words all over the reply segment from a thread of its own, from now on.
fn garbage(raw: &RawWorker, seed: u64) {
    let poker = raw.poker();
    std::thread::spawn(move || {
        let mut numbers = Numbers(seed);
        loop {
            // Mostly where it matters: control words and the first slots.
            let limit = if numbers.below(3) == 0 { poker.bytes() as u64 } else { 8192 };
            let at = numbers.below(limit / 8) as usize * 8;
            let word = match numbers.below(4) {
                0 => numbers.below(200),
                1 => u64::MAX - numbers.below(3),
                2 => numbers.below(1 << 40) << 24 | numbers.below(70),
                _ => numbers.below(1 << 53) << 11,
            };
            poker.poke(at, word);
            std::thread::sleep(Duration::from_micros(numbers.below(300)));
        }
    });
}
