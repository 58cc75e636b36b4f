//! The count of one direction of one connection.

/// Counts messages from 0, at the sender and at the receiver.
///
/// The receiver takes the next number and no other. TCP keeps the order, so this alone refuses every replay,
/// however old, without remembering one.
#[derive(Default)]
pub struct Counter {
    next: u64,
}

impl Counter {
    /// At the sender: the number of the next message.
    pub fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// How many there have been.
    #[cfg(feature = "testing")]
    pub fn count(&self) -> u64 {
        self.next
    }

    /// At the receiver: whether this is the next number. Only then does the count advance.
    pub fn accept(&mut self, number: u64) -> bool {
        let is_next = number == self.next;
        self.next += u64::from(is_next);
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_ipc_04_each_number_counts_once_and_in_order() {
        let (mut sender, mut receiver) = (Counter::default(), Counter::default());
        assert!(!receiver.accept(1), "the first is 0");
        for _ in 0..1000 {
            let number = sender.take();
            assert!(receiver.accept(number));
            for wrong in [0, number, number.wrapping_add(2), u64::MAX] {
                assert!(!receiver.accept(wrong), "{wrong} after {number}");
            }
        }
    }
}
