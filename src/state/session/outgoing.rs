//! Outgoing messages of a session, until they are written.
//!
//! Each message has its length in front, so that every transport can frame it in its own way. An
//! empty list takes no memory.

/// List of messages. Each session has one, and it is mostly empty.
#[derive(Debug, Default)]
pub struct Outgoing(Option<Box<Messages>>);

#[derive(Debug, Default)]
struct Messages {
    bytes: Vec<u8>,
}

const LENGTH: usize = size_of::<u32>();

impl Outgoing {
    /// Appends a message, which `write` appends to the given buffer.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let bytes = &mut self.0.get_or_insert_default().bytes;
        let start = bytes.len();
        bytes.extend_from_slice(&[0; LENGTH]);
        write(bytes);
        let length = u32::try_from(bytes.len() - start - LENGTH).expect("messages are far below 4 GiB");
        bytes[start..start + LENGTH].copy_from_slice(&length.to_ne_bytes());
    }

    /// Returns whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the length of the buffer, in bytes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |messages| messages.bytes.len())
    }

    /// Takes all messages out, for [`messages`].
    pub fn take(&mut self) -> Vec<u8> {
        self.0.take().map_or_else(Vec::new, |messages| messages.bytes)
    }
}

/// Returns the messages in the result of [`Outgoing::take`].
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
        let (message, rest) = rest.split_at(u32::from_ne_bytes(*length) as usize);
        bytes = rest;
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_messages_apart_and_in_order() {
        let mut outgoing = Outgoing::default();
        for text in ["40", "", "long".repeat(100).as_str()] {
            outgoing.push(|out| out.extend_from_slice(text.as_bytes()));
        }
        let bytes = outgoing.take();
        assert!(outgoing.is_empty());
        let lengths: Vec<_> = messages(&bytes).map(<[u8]>::len).collect();
        assert_eq!(lengths, [2, 0, 400]);
    }
}
