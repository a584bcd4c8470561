//! `vectorized!`: a function over slices whose body is compiled once for each instruction path and chosen at run time.

/// Declares `fn name<'a, F: Float>(args)`, or `fn name<'a, F: Float, S: Stored<F>>(args)` if it rounds to what is stored; its body sees a token `isa: I` of the
/// path it is compiled for. Every argument type names its lifetime.
macro_rules! vectorized {
    ($(#[$meta:meta])* fn $name:ident<$l:lifetime, $F:ident, $S:ident>($isa:ident: $I:ident, $($arg:ident: $ty:ty),* $(,)?) -> $out:ty $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        fn $name<$l, $F: $crate::cpu::math::Float, $S: $crate::cpu::stored::Stored<$F>>($($arg: $ty),*) -> $out {
            struct Call<$l, $F: $crate::cpu::math::Float, $S> { $($arg: $ty,)* lifetime: std::marker::PhantomData<&$l ($F, $S)> }
            impl<$l, $F: $crate::cpu::math::Float, $S: $crate::cpu::stored::Stored<$F>> $crate::cpu::isa::Kernel for Call<$l, $F, $S> {
                type Output = $out;
                #[inline(always)]
                fn run<$I: $crate::cpu::isa::Isa>(self, $isa: $I) -> $out {
                    let Call { $($arg,)* lifetime: _ } = self;
                    let _ = $isa;
                    $body
                }
            }
            let call = Call::<$F, $S> { $($arg,)* lifetime: std::marker::PhantomData };
            $crate::cpu::isa::dispatch_bf16(call)
        }
    };
    ($(#[$meta:meta])* fn $name:ident<$l:lifetime, $F:ident>($isa:ident: $I:ident, $($arg:ident: $ty:ty),* $(,)?) -> $out:ty $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        fn $name<$l, $F: $crate::cpu::math::Float>($($arg: $ty),*) -> $out {
            struct Call<$l, $F: $crate::cpu::math::Float> { $($arg: $ty,)* lifetime: std::marker::PhantomData<&$l $F> }
            impl<$l, $F: $crate::cpu::math::Float> $crate::cpu::isa::Kernel for Call<$l, $F> {
                type Output = $out;
                #[inline(always)]
                fn run<$I: $crate::cpu::isa::Isa>(self, $isa: $I) -> $out {
                    let Call { $($arg,)* lifetime: _ } = self;
                    let _ = $isa;
                    $body
                }
            }
            $crate::cpu::isa::dispatch(Call { $($arg,)* lifetime: std::marker::PhantomData })
        }
    };
}
pub(crate) use vectorized;
