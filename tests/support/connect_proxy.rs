//! An HTTP proxy that takes CONNECT, and what it was asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The proxy; gone when dropped.
pub(crate) struct ConnectProxy {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    listener: JoinHandle<()>,
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// What a proxy demands.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    /// The header `Proxy-Authorization`, whole.
    pub(crate) authorization: Option<String>,
    /// The only port it leads to.
    pub(crate) only_port: Option<u16>,
}

impl ConnectProxy {
    pub(crate) async fn start(rules: Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let shared = Arc::clone(&asked);
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (rules, asked) = (rules.clone(), Arc::clone(&shared));
                // A client that goes away in the middle is not the proxy's concern.
                tokio::spawn(async move { serve(stream, rules, asked).await.ok() });
            }
        });
        Self {
            address,
            asked,
            listener,
        }
    }

    /// `http://HOST:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it was asked to lead to, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    rules: Rules,
    asked: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let target = request
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_default()
        .to_owned();
    asked.lock().unwrap().push(target.clone());
    let allowed = rules.authorization.is_none_or(|expected| {
        request.lines().any(|line| {
            let header = line.split_once(": ");
            header.is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("proxy-authorization") && value == expected
            })
        })
    });
    let refusal = if !allowed {
        Some("407 Proxy Authentication Required")
    } else if rules
        .only_port
        .is_some_and(|port| !target.ends_with(&format!(":{port}")))
    {
        Some("403 Forbidden")
    } else {
        None
    };
    if let Some(refusal) = refusal {
        let answer = format!("HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n");
        return stream.write_all(answer.as_bytes()).await;
    }
    let mut server = TcpStream::connect(&target).await?;
    stream
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await?;
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}
