//! The next batches made on a background thread while the model computes: a bounded channel keeps the order of the
//! iterator, carries its errors, and makes the thread wait when it is far enough ahead.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// An iterator whose items are made ahead of time by a thread of its own.
///
/// It yields exactly what the wrapped iterator yields, in its order, and ends after its first error.
#[derive(Debug)]
pub struct Loader<T> {
    receiver: Option<Receiver<Result<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts the thread; at most `ahead` finished items wait (at least one).
    ///
    /// # Errors
    /// A thread that the system refuses to start.
    pub fn start(items: impl Iterator<Item = Result<T>> + Send + 'static, ahead: usize) -> Result<Self> {
        let (sender, receiver) = sync_channel(ahead.max(1));
        let work = move || {
            for item in items {
                let failed = item.is_err();
                // A send fails only when the loader was dropped: nobody waits for the rest.
                if sender.send(item).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("loader".into())
            .spawn(work)
            .map_err(|error| Error::Data(format!("cannot start the thread that loads batches: {error}")))?;
        Ok(Loader { receiver: Some(receiver), thread: Some(thread) })
    }
}

impl<T> Iterator for Loader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if let Ok(item) = self.receiver.as_ref()?.recv() {
            return Some(item);
        }
        self.receiver = None;
        match self.thread.take()?.join() {
            Ok(()) => None,
            Err(_) => Some(Err(Error::Data(
                "the thread that loads batches stopped unexpectedly; its message is above".into(),
            ))),
        }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        // The closed channel ends the thread at its next send.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_preserved_and_the_end_is_reached() {
        for ahead in [0, 1, 3] {
            let loader = Loader::start((0..50).map(Ok), ahead).unwrap();
            let items: Vec<i32> = loader.map(|item| item.unwrap()).collect();
            assert_eq!(items, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_arrives_in_its_place_and_ends_the_iteration() {
        let items = (0..10).map(|i| if i == 3 { Err(Error::Data("third".into())) } else { Ok(i) });
        let mut loader = Loader::start(items, 2).unwrap();
        for i in 0..3 {
            assert_eq!(loader.next().unwrap().unwrap(), i);
        }
        assert_eq!(loader.next().unwrap().unwrap_err().to_string(), "third".to_string());
        assert!(loader.next().is_none());
        assert!(loader.next().is_none());
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let items = (0..3).map(|i| {
            assert!(i < 1, "a broken iterator");
            Ok(i)
        });
        let mut loader = Loader::start(items, 1).unwrap();
        assert_eq!(loader.next().unwrap().unwrap(), 0);
        assert!(loader.next().unwrap().is_err());
        assert!(loader.next().is_none());
    }

    /// The iterator has no end: dropping the loader must still return, and the iterator must be dropped with it.
    #[test]
    fn dropping_the_loader_stops_its_thread() {
        let alive = std::sync::Arc::new(());
        let held = std::sync::Arc::clone(&alive);
        let mut loader = Loader::start(
            (0u64..).map(move |i| {
                let _ = &held;
                Ok(i)
            }),
            2,
        )
        .unwrap();
        assert_eq!(loader.next().unwrap().unwrap(), 0);
        drop(loader);
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    }
}
