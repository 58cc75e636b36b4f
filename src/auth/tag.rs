//! Tags: HMAC-SHA256 over what a message covers and over what the connection has said before.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::keys::{Key, wiping};

/// Bytes of a tag, and of a transcript.
const HASH_BYTES: usize = 32;

/// What a connection has said so far: SHA-256 over its handshake messages. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Transcript([u8; HASH_BYTES]);

impl Transcript {
    /// Nothing has been said.
    pub fn empty() -> Self {
        Self([0; HASH_BYTES])
    }

    /// These messages, in this order.
    pub fn of(messages: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        messages.iter().for_each(|message| hash.update(message));
        Self(hash.finalize().into())
    }

    pub(super) fn bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }
}

impl Key {
    /// The tag over these bytes, said after this transcript.
    pub fn tag(&self, covered: &[u8], transcript: &Transcript) -> [u8; HASH_BYTES] {
        wiping(|| self.mac(covered, transcript).finalize().into_bytes().into())
    }

    /// Whether this is that tag. Takes the same time wherever it differs.
    pub fn verify(&self, covered: &[u8], transcript: &Transcript, tag: &[u8; HASH_BYTES]) -> bool {
        wiping(|| self.mac(covered, transcript).verify_slice(tag).is_ok())
    }

    fn mac(&self, covered: &[u8], transcript: &Transcript) -> Hmac<Sha256> {
        Hmac::new_from_slice(self.bytes())
            .expect("HMAC takes keys of any length")
            .chain_update(covered)
            .chain_update(transcript.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CREDENTIALS_BYTES, Credentials, Life, Schedule};
    use super::*;

    fn key(worker: u32) -> Key {
        let credentials = Credentials::take(&mut [3; CREDENTIALS_BYTES]);
        Schedule::new(&credentials, Life { worker, incarnation: 1 }).handshake().worker
    }

    #[test]
    fn sec_ipc_02_a_tag_holds_for_its_bytes_transcript_and_key_only() {
        let transcript = Transcript::of(&[b"said"]);
        let tag = key(1).tag(b"covered", &transcript);
        assert!(key(1).verify(b"covered", &transcript, &tag));
        assert!(!key(2).verify(b"covered", &transcript, &tag));
        assert!(!key(1).verify(b"Covered", &transcript, &tag));
        assert!(!key(1).verify(b"covered", &Transcript::empty(), &tag));
        assert!(!key(1).verify(b"covered", &transcript, &[0; HASH_BYTES]));
        for bit in 0..HASH_BYTES * 8 {
            let mut wrong = tag;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!key(1).verify(b"covered", &transcript, &wrong), "bit {bit}");
        }
    }

    #[test]
    fn key_ipc_04_a_tag_is_that_of_another_implementation() {
        let transcript = Transcript::of(&[b"hello", b"challenge"]);
        let tag = key(7).tag(b"covered", &transcript);
        let hex: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        // HMAC-SHA256 of Python's standard library.
        assert_eq!(hex, "be2afe5b3e033e136a43d14fb622a3f5e55f66b000dba716eab9c179a0149ee2");
    }
}
