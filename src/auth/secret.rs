//! Where all keys of one life of a worker come from.

use zeroize::{Zeroize, Zeroizing};

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// Bytes of a session id.
const SESSION_BYTES: usize = 16;
/// Bytes of [`Credentials`] as they travel.
pub const CREDENTIALS_BYTES: usize = SECRET_BYTES + SESSION_BYTES;

/// 32 secret bytes, wiped when dropped. There is no default.
pub struct Secret(Box<Zeroizing<[u8; SECRET_BYTES]>>);

impl Secret {
    /// Takes the bytes and wipes the place where they stood.
    pub fn take(bytes: &mut [u8; SECRET_BYTES]) -> Self {
        let mut secret = Self::empty();
        secret.0.copy_from_slice(bytes);
        bytes.zeroize();
        secret
    }

    /// To be filled in place, so that no other place has to be wiped.
    fn empty() -> Self {
        Self(Box::new(Zeroizing::new([0; SECRET_BYTES])))
    }

    pub(super) fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

/// What one life of a worker and its engine share: a secret, and an id that no other life has.
///
/// Made by the engine, handed over once in the start bundle, dropped by both when the handshake is done.
pub struct Credentials {
    secret: Secret,
    session: [u8; SESSION_BYTES],
}

impl Credentials {
    /// Fresh ones. `fill` fills a buffer with bytes fit for secrets.
    ///
    /// # Errors
    /// What `fill` reports.
    pub fn generate<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut credentials = Self { secret: Secret::empty(), session: [0; SESSION_BYTES] };
        fill(credentials.secret.0.as_mut_slice())?;
        fill(&mut credentials.session)?;
        Ok(credentials)
    }

    /// For development: this secret in place of random bytes. The id is random all the same, so keys still
    /// differ from life to life.
    ///
    /// # Errors
    /// What `fill` reports.
    pub fn with_static<E>(
        secret: &Secret,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut credentials = Self { secret: Secret::empty(), session: [0; SESSION_BYTES] };
        credentials.secret.0.copy_from_slice(secret.bytes());
        fill(&mut credentials.session)?;
        Ok(credentials)
    }

    /// Writes what the worker needs. The caller sends it once and wipes it.
    pub fn write(&self, out: &mut [u8; CREDENTIALS_BYTES]) {
        out[..SECRET_BYTES].copy_from_slice(self.secret.bytes());
        out[SECRET_BYTES..].copy_from_slice(&self.session);
    }

    /// Takes what [`Credentials::write`] wrote, at the other end, and wipes the place where it stood.
    pub fn take(bytes: &mut [u8; CREDENTIALS_BYTES]) -> Self {
        let mut credentials = Self { secret: Secret::empty(), session: [0; SESSION_BYTES] };
        credentials.secret.0.copy_from_slice(&bytes[..SECRET_BYTES]);
        credentials.session.copy_from_slice(&bytes[SECRET_BYTES..]);
        bytes.zeroize();
        credentials
    }

    pub(super) fn secret(&self) -> &[u8; SECRET_BYTES] {
        self.secret.bytes()
    }

    pub(super) fn session(&self) -> &[u8; SESSION_BYTES] {
        &self.session
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::random;

    #[test]
    fn key_ipc_01_every_start_has_its_own_secret_from_the_system() {
        let [one, two] = [(); 2].map(|()| Credentials::generate(random::fill).expect("random bytes"));
        assert!(one.secret() != two.secret() && one.session() != two.session());
        // Without random bytes there are no credentials: nothing stands in for them.
        assert!(Credentials::generate(|_: &mut [u8]| Err(())).is_err());
        let mut lengths = Vec::new();
        let count = |room: &mut [u8]| {
            lengths.push(room.len());
            Ok::<_, ()>(())
        };
        assert!(Credentials::generate(count).is_ok());
        assert_eq!(lengths, [SECRET_BYTES, SESSION_BYTES]);
    }

    #[test]
    fn key_ipc_02_a_static_secret_replaces_the_random_bytes_only() {
        let mut bytes = *b"for development, 32 bytes of it.";
        let secret = Secret::take(&mut bytes);
        assert_eq!(bytes, [0; SECRET_BYTES], "wiped where it stood");
        let [one, two] =
            [(); 2].map(|()| Credentials::with_static(&secret, random::fill).expect("random bytes"));
        assert!(one.secret() == secret.bytes() && two.secret() == secret.bytes());
        assert!(one.session() != two.session());
        assert!(Credentials::with_static(&secret, |_: &mut [u8]| Err(())).is_err());
    }

    #[test]
    fn key_ipc_03_credentials_travel_once() {
        let ours = Credentials::generate(random::fill).expect("random bytes");
        let mut bytes = [0; CREDENTIALS_BYTES];
        ours.write(&mut bytes);
        let theirs = Credentials::take(&mut bytes);
        assert_eq!(bytes, [0; CREDENTIALS_BYTES]);
        assert!(ours.secret() == theirs.secret() && ours.session() == theirs.session());
    }
}
