//! Keys: one per direction, phase, worker and incarnation.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroizing, zeroize_stack};

use super::secret::Credentials;
use super::tag::Transcript;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// What everything derived here begins with: keys of another protocol or version are other keys.
const PROTOCOL: &[u8] = b"handbell doorbell 1";
/// More stack than a derivation or a tag takes, to be wiped after it.
const STACK_BYTES: usize = 4096;

/// One life of a worker: keys of one are worthless in any other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// The worker's number in the plan.
    pub worker: u32,
    /// Counts the lives of workers.
    pub incarnation: u64,
}

/// A key for tags of one direction, wiped when dropped.
pub struct Key(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl Key {
    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// The two keys of a phase, each named after the side that signs with it.
pub struct Keys {
    /// The worker signs, the engine verifies.
    pub worker: Key,
    /// The engine signs, the worker verifies.
    pub engine: Key,
}

/// Derives the keys of one life: HKDF-SHA256, wiped when dropped.
pub struct Schedule(Box<Hkdf<Sha256>>);

impl Schedule {
    /// The schedule of this life.
    pub fn new(credentials: &Credentials, life: Life) -> Self {
        wiping(|| {
            let [worker, incarnation] = [&life.worker.to_le_bytes()[..], &life.incarnation.to_le_bytes()];
            let salt = [credentials.session(), worker, incarnation].concat();
            let (prk, hkdf) = Hkdf::extract(Some(&salt), credentials.secret());
            drop(Zeroizing::new(<[u8; KEY_BYTES]>::from(prk)));
            Self(Box::new(hkdf))
        })
    }

    /// The keys of HELLO and CHALLENGE.
    pub fn handshake(&self) -> Keys {
        self.keys(b"handshake", &Transcript::empty())
    }

    /// The keys of everything that follows the handshake with this transcript.
    pub fn session(&self, transcript: &Transcript) -> Keys {
        self.keys(b"session", transcript)
    }

    fn keys(&self, phase: &[u8], transcript: &Transcript) -> Keys {
        let key = |signer: &[u8]| {
            wiping(|| {
                let mut key = Key(Box::new(Zeroizing::new([0; KEY_BYTES])));
                // No name contains a zero byte, so no two of these are the same bytes.
                let info = [PROTOCOL, b"\0", phase, b"\0", signer, b"\0", transcript.bytes()];
                let expanded = self.0.expand_multi_info(&info, key.0.as_mut_slice());
                expanded.expect("one block is never too long");
                key
            })
        };
        Keys { worker: key(b"worker"), engine: key(b"engine") }
    }
}

/// Runs `work` and wipes the stack that it used: what the libraries leave there is beyond anybody's `Drop`.
///
/// Best effort: the compiler may keep a copy elsewhere, such as in a register.
pub(super) fn wiping<T>(work: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let result = apart(work);
    zeroize_stack::<STACK_BYTES>();
    result
}

#[cfg(test)]
mod tests {
    use super::super::secret::CREDENTIALS_BYTES;
    use super::*;

    /// Does not compile if the type has the trait: two candidates for the same name.
    macro_rules! lacks {
        ($($type:ty: $trait:path),* $(,)?) => { $(const _: fn() = || {
            trait Ambiguous<Which> { fn name() {} }
            impl<T> Ambiguous<()> for T {}
            struct Has;
            impl<T: $trait> Ambiguous<Has> for T {}
            <$type as Ambiguous<_>>::name();
        };)* };
    }
    lacks! {
        Key: Clone, Key: std::fmt::Debug, Keys: Clone, Keys: std::fmt::Debug,
        Schedule: Clone, Schedule: std::fmt::Debug, Credentials: Clone, Credentials: std::fmt::Debug,
        super::super::Secret: Clone, super::super::Secret: std::fmt::Debug,
    }

    fn credentials() -> Credentials {
        let mut bytes = [0; CREDENTIALS_BYTES];
        (0..).zip(&mut bytes).for_each(|(value, byte)| *byte = value);
        Credentials::take(&mut bytes)
    }

    fn hex(key: &Key) -> String {
        key.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn key_ipc_04_keys_are_those_of_another_implementation() {
        let schedule = Schedule::new(&credentials(), Life { worker: 7, incarnation: 9 });
        let handshake = schedule.handshake();
        let session = schedule.session(&Transcript::of(&[b"hello", b"challenge"]));
        // HKDF by hand, from HMAC-SHA256 of Python's standard library.
        for (key, expected) in [
            (&handshake.worker, "3db80f0d7590da37e6a6dfa422f48a7bce82dc76d24dc3cfe592fef15a0abd4d"),
            (&handshake.engine, "f0b5565e320f1b3c3d246113e6d7b7021540ee2f3b369a1ec7e08dbf3cffed38"),
            (&session.worker, "a35416457c5db0f1cd5cb740ebd8fd1e386b67dc12b622a4cda6d0e4d0aeac3c"),
            (&session.engine, "70b3799d77ddac3187c930cad1a1855a3966eaf404470b2b01b5bf6944ecbae2"),
        ] {
            assert_eq!(hex(key), expected);
        }
    }

    #[test]
    fn key_ipc_04_every_direction_phase_worker_incarnation_and_session_has_its_own_key() {
        let life = Life { worker: 1, incarnation: 1 };
        let mut other_session = [7; CREDENTIALS_BYTES];
        credentials().write(&mut other_session);
        other_session[CREDENTIALS_BYTES - 1] ^= 1;
        let mut other_secret = [7; CREDENTIALS_BYTES];
        credentials().write(&mut other_secret);
        other_secret[0] ^= 1;
        let transcripts = [Transcript::of(&[b"a"]), Transcript::of(&[b"b"])];
        let mut seen = std::collections::BTreeSet::new();
        for (credentials, life) in [
            (credentials(), life),
            (credentials(), Life { worker: 2, ..life }),
            (credentials(), Life { incarnation: 2, ..life }),
            (Credentials::take(&mut other_session), life),
            (Credentials::take(&mut other_secret), life),
        ] {
            let schedule = Schedule::new(&credentials, life);
            for keys in [
                schedule.handshake(),
                schedule.session(&Transcript::empty()),
                schedule.session(&transcripts[0]),
                schedule.session(&transcripts[1]),
            ] {
                assert!(seen.insert(hex(&keys.worker)) && seen.insert(hex(&keys.engine)));
            }
        }
        assert_eq!(seen.len(), 40);
    }
}
